// SPDX-License-Identifier: Apache-2.0
// What a dashboard's JSON may hold, put together from Grafana's own types: their general Panel takes any options.
import type * as schema from "@grafana/schema";
import type * as barGauge from "@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen";
import type * as heatmap from "@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as stateTimeline from
  "@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen";
import type * as table from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type * as text from "@grafana/schema/dist/esm/raw/composable/text/panelcfg/x/TextPanelCfg_types.gen";
import type * as timeSeries from
  "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

// An enum's members are plain strings in JSON. A literal type per member keeps a misspelt one an error.
type Json<T> = unknown extends T ? T
  : T extends string ? `${T}`
  : T extends number | boolean | null | undefined ? T
  : { [K in keyof T]: Json<T[K]> };

// @grafana/schema leaves the queries of each data source to its plugin; these are the fields that Prometheus' reads.
interface PrometheusQuery extends schema.DataQuery {
  datasource?: schema.DataSourceRef;
  expr: string;
  legendFormat?: string;
  format?: "time_series" | "table" | "heatmap";
  range: boolean;
  instant: boolean;
  editorMode?: "code" | "builder";
}

type Located = { id: number; gridPos: schema.GridPos };
type Defaults<Custom> = Omit<schema.FieldConfig, "custom" | "unit"> & { unit: string; custom: Custom };
type Fields<Custom> = Omit<schema.FieldConfigSource, "defaults"> & { defaults: Defaults<Custom> };
type Replaced = "type" | "title" | "description" | "options" | "fieldConfig" | "targets" | "datasource" | keyof Located;
type Graph<Type extends string, Options, Custom> = Json<Omit<schema.Panel, Replaced> & Located & {
  type: Type;
  title: string;
  description: string;
  datasource: schema.DataSourceRef;
  options: Options;
  fieldConfig: Fields<Custom>;
  targets: PrometheusQuery[];
}>;

type None = Record<string, never>;

export interface Panels {
  bargauge: Graph<"bargauge", barGauge.Options, None>;
  heatmap: Graph<"heatmap", heatmap.Options, heatmap.FieldConfig>;
  stat: Graph<"stat", stat.Options, None>;
  "state-timeline": Graph<"state-timeline", stateTimeline.Options, stateTimeline.FieldConfig>;
  table: Graph<"table", table.Options, table.FieldConfig>;
  text: Json<Omit<schema.Panel, "type" | "options" | keyof Located> & Located
    & { type: "text"; options: text.Options }>;
  timeseries: Graph<"timeseries", timeSeries.Options, timeSeries.FieldConfig>;
  row: Json<Omit<schema.RowPanel, "panels" | keyof Located> & Located & { panels: [] }>;
}

// What an override sets of a field: each of its ids is a path into the panel's defaults.
export type Override<Type extends Exclude<keyof Panels, "row" | "text">> =
  Partial<Omit<Panels[Type]["fieldConfig"]["defaults"], "custom">>
  & { custom?: Partial<Panels[Type]["fieldConfig"]["defaults"]["custom"]> };

// The Prometheus plugin's annotations have a query and say how an event is called.
interface Annotation extends Omit<schema.AnnotationQuery, "target"> {
  target?: PrometheusQuery;
  titleFormat?: string;
  textFormat?: string;
  tagKeys?: string;
}

export type Frame = Json<Omit<schema.Dashboard, "panels" | "annotations"> & { annotations: { list: Annotation[] } }>;

// SPDX-License-Identifier: Apache-2.0
// Parses PromQL with Prometheus' own grammar. In: a JSON list of expressions; out: for each {error} or what it selects
// and how it aggregates, for test_dashboard.py to judge:
//   selectors:    [{metric, labels (of its matchers), aggregates (from the inside out: {op, by})}]
//   aggregations: [{op, by, metrics (below it)}]
//   ranges:       [{call, range}] of functions over a range
import { readFileSync } from "node:fs";
import { parser } from "@prometheus-io/lezer-promql";

const isLabel = (node) => ["LabelName", "QuotedLabelName"].includes(node.name);

function below(node, wanted) {
  const found = [];
  node.cursor().iterate((inner) => { if (wanted(inner)) found.push(inner.node); });
  return found;
}

function parse(text) {
  const tree = parser.parse(text).topNode;
  const said = (node) => text.slice(node.from, node.to);
  const broken = below(tree, (node) => node.type.isError)[0];
  if (broken) return { error: `at ${broken.from}: ${text.slice(broken.from, broken.from + 20)}` };

  const metric = (selector) => said(selector.getChild("Identifier") ?? selector);
  const selectors = (node) => below(node, (inner) => inner.name === "VectorSelector");
  const aggregation = (node) => {
    const modifier = node.getChild("AggregateModifier");
    return {
      op: said(node.getChild("AggregateOp")),
      by: modifier && modifier.getChild("By") ? below(modifier, isLabel).map(said) : [],
      without: Boolean(modifier && modifier.getChild("Without")),
    };
  };
  const around = (node) => {
    const out = [];
    for (let outer = node.parent; outer; outer = outer.parent)
      if (outer.name === "AggregateExpr") out.push(aggregation(outer));
    return out;
  };
  const matchers = (selector) => below(selector, isLabel).map(said);
  return {
    selectors: selectors(tree).map((node) => ({ metric: metric(node), labels: matchers(node), aggregates: around(node) })),
    aggregations: below(tree, (node) => node.name === "AggregateExpr")
      .map((node) => ({ ...aggregation(node), metrics: selectors(node).map(metric) })),
    ranges: below(tree, (node) => node.name === "MatrixSelector").map((node) => {
      let call = node.parent;
      while (call && call.name !== "FunctionCall") call = call.parent;
      return { call: call ? said(call.getChild("FunctionIdentifier")) : "",
               range: text.slice(node.firstChild.to, node.to).replace(/[[\]]/g, "") };
    }),
  };
}

const expressions = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(expressions.map(parse)));

// go_peer: the same work with client_golang, as python_peer.py has it.
//
//	go_peer record [--ms=N]          samples of each case, one JSON object a line
//	go_peer serve PORT [--debug]     16 passes, then an HTTP server; says "ready"
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	layers  = 60
	experts = 256
	passes  = 16
	model   = "deepseek-ai/DeepSeek-R1-0528"
	engine  = "0"
)

var registry = prometheus.NewRegistry()

func gauge(name string, labels ...string) *prometheus.GaugeVec {
	vector := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: name},
		append([]string{"model_name", "engine"}, labels...))
	registry.MustRegister(vector)
	return vector
}

var (
	balancedness = gauge("vllm:eplb_balancedness_ratio", "layer")
	average      = gauge("vllm:eplb_avg_tokens_per_rank", "layer")
	maximum      = gauge("vllm:eplb_max_tokens_per_rank", "layer")
	active       = gauge("vllm:dbo_active", "phase")
	expertLoad   = gauge("vllm:expert_load_per_expert_tokens_DEBUG", "layer", "expert_id")
	fallout      = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "vllm:dbo_fallout_total", Help: "fallouts"},
		[]string{"model_name", "engine", "reason"})
	ubatch = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "vllm:ubatch_token_count", Help: "tokens",
		Buckets: prometheus.ExponentialBuckets(1, 2, 14)}, []string{"model_name", "engine", "ubatch_index"})
)

// One layer's handles.
type layer struct{ ratio, average, maximum prometheus.Gauge }

type dbo struct {
	active        prometheus.Gauge
	fallout       prometheus.Counter
	first, second prometheus.Observer
}

// Handles are kept, or, in the cases that end in _labels, looked up for each value.
type work struct {
	number  int
	layers  [layers]layer
	dbo     dbo
	experts [layers][experts]prometheus.Gauge
}

var names [experts]string

func layerHandles(i int) layer {
	return layer{balancedness.WithLabelValues(model, engine, names[i]), average.WithLabelValues(model, engine, names[i]),
		maximum.WithLabelValues(model, engine, names[i])}
}

func dboHandles() dbo {
	return dbo{active.WithLabelValues(model, engine, "decode"),
		fallout.WithLabelValues(model, engine, "empty_second_ubatch"),
		ubatch.WithLabelValues(model, engine, "first"), ubatch.WithLabelValues(model, engine, "second")}
}

func expertHandle(i, j int) prometheus.Gauge {
	return expertLoad.WithLabelValues(model, engine, names[i], names[j])
}

func newWork(debug bool) *work {
	w := &work{dbo: dboHandles()}
	for i := range w.layers {
		w.layers[i] = layerHandles(i)
		for j := 0; debug && j < experts; j++ {
			w.experts[i][j] = expertHandle(i, j)
		}
	}
	return w
}

func setLayer(i int, l layer) {
	l.ratio.Set(0.75 + float64(i)/1000)
	l.average.Set(100 + float64(i))
	l.maximum.Set(130 + 2*float64(i))
}

func (w *work) observe(d dbo) {
	w.number++
	if w.number%16 == 0 {
		d.fallout.Inc()
		d.active.Set(0)
	} else {
		d.active.Set(1)
	}
	d.first.Observe(700)
	d.second.Observe(600)
}

func (w *work) a() {
	for i := range w.layers {
		setLayer(i, w.layers[i])
	}
	w.observe(w.dbo)
}

func (w *work) aLabels() {
	for i := range w.layers {
		setLayer(i, layerHandles(i))
	}
	w.observe(dboHandles())
}

func load(i, j int) float64 { return float64((7*i + 13*j) % 31) }

func (w *work) b() {
	for i := range w.experts {
		for j, gauge := range w.experts[i] {
			gauge.Set(load(i, j))
		}
	}
}

func (w *work) bLabels() {
	for i := range w.experts {
		for j := range w.experts[i] {
			expertHandle(i, j).Set(load(i, j))
		}
	}
}

// The mean of a batch of calls, which is long enough for the clock.
func batch(call func(), calls int) float64 {
	begin := time.Now()
	for i := 0; i < calls; i++ {
		call()
	}
	return float64(time.Since(begin).Nanoseconds()) / float64(calls)
}

func record(ms float64) {
	w := newWork(true)
	for _, c := range []struct {
		name string
		call func()
	}{{"work_a", w.a}, {"work_a_labels", w.aLabels}, {"work_b", w.b}, {"work_b_labels", w.bLabels}} {
		samples := []float64{}
		calls := 1
		batch(c.call, 1)
		for batch(c.call, calls)*float64(calls) < 50e3 {
			calls *= 2
		}
		end := time.Now().Add(time.Duration(ms * 1e6))
		for len(samples) < 2 || time.Now().Before(end) {
			samples = append(samples, batch(c.call, calls))
		}
		line, _ := json.Marshal(map[string]any{"case": c.name, "ns": samples})
		fmt.Println(string(line))
	}
}

func serve(port string, debug bool) error {
	w := newWork(debug)
	for i := 0; i < passes; i++ {
		w.a()
		if debug {
			w.b()
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	http.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	return http.Serve(listener, nil)
}

func main() {
	registry.MustRegister(fallout, ubatch)
	for i := range names {
		names[i] = strconv.Itoa(i)
	}
	what, port, ms, debug := "", "", 100.0, false
	for _, argument := range os.Args[1:] {
		switch {
		case argument == "--debug":
			debug = true
		case strings.HasPrefix(argument, "--ms="):
			ms, _ = strconv.ParseFloat(argument[len("--ms="):], 64)
		case what == "":
			what = argument
		default:
			port = argument
		}
	}
	switch what {
	case "record":
		record(ms)
	case "serve":
		fmt.Fprintln(os.Stderr, serve(port, debug))
		os.Exit(1)
	default:
		fmt.Fprintln(os.Stderr, "usage: go_peer record [--ms=N] | serve PORT [--debug]")
		os.Exit(2)
	}
}

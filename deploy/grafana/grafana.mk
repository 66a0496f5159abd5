# The Grafana dashboard is generated, and committed with what generates it.

NO_COMPILE += dashboard

.PHONY: dashboard
dashboard: ## Write deploy/grafana/wideep.json from dashboard.py beside it
	@$(PYTHON) deploy/grafana/dashboard.py >deploy/grafana/wideep.json.new
	@mv deploy/grafana/wideep.json.new deploy/grafana/wideep.json

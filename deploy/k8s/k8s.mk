# What Kubernetes is given of the rules and of the dashboard.

NO_COMPILE += k8s

.PHONY: k8s
k8s: ## Write deploy/k8s/prometheus-rule and dashboard anew from deploy/prometheus and deploy/grafana
	$(PYTHON) deploy/k8s/generate.py

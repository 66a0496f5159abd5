# Deployment: what runs the programs (container, pod, systemd, packages) and what reads them (rules, dashboard).

NO_COMPILE += check-deploy deps-deploy

.PHONY: check-deploy run-deploy-tests deps-deploy
check-deploy: deps-test deps-deploy ## Container image, pod, systemd, Prometheus rules, dashboard, packages, as they are deployed
	@$(submake) run-deploy-tests

# One at a time: containers and machines share names, ports and the network.
run-deploy-tests: tests-build
	@$(PYTHON) tests/run --build $(B) --processes tests/deploy --test-jobs 0 --case-timeout 600 --process-timeout 3000 \
		--mark '$(TEST_MARK)' --only '$(T)'

deps-deploy:
	$(call install_packages,tests/deps-deploy.txt)

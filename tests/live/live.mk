# The live page in a real browser.

NO_COMPILE += check-live deps-live

.PHONY: check-live run-live-tests deps-live
check-live: deps-test deps-live ## The live page in a real Chromium against real programs
	@$(submake) run-live-tests

# One at a time: a browser has needs of its own.
run-live-tests: tests-build
	@$(PYTHON) tests/run --build $(B) --processes tests/live --test-jobs 0 --case-timeout 300 --process-timeout 1500 \
		--mark '$(TEST_MARK)' --only '$(T)' $(if $(TALLY),--tally $(TALLY) --label live)

deps-live:
	$(call install_packages,tests/deps-live.txt)

# The protocol's models: `make check` goes through the small configurations and the mutants, `make model` through larger
# ones, which take minutes.
NO_COMPILE += model
.PHONY: model
model: deps-test ## Check the models of the slot protocol and of takeover in their large configurations
	$(PYTHON) tests/model/check.py

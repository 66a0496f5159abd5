# What is loaded into the exporter, or put around it, to make the system below it fail.

FAULTS_SRCS := $(wildcard tests/faults/*.c)
C_SRCS += $(FAULTS_SRCS)
FORMATTED += $(FAULTS_SRCS) $(wildcard tests/faults/*.h)
NO_COMPILE += faults

# Without sanitizers, whose allocator and interceptors would come in each other's way.
$(B)/tests/faults/inject.so: tests/faults/inject.c tests/faults/inject.h $(B)/gen/flags
	$(call say,LD,$@) mkdir -p $(@D)
	$(Q)$(CC) $(filter-out -Iinclude,$(BASE_CFLAGS)) -fPIC -fno-builtin $(CFLAGS) -shared -Wl,--no-undefined $< -o $@

$(B)/tests/faults/confine: tests/faults/confine.c $(B)/gen/flags
	$(call say,LD,$@) mkdir -p $(@D)
	$(Q)$(CC) $(BASE_CFLAGS) -fPIE $(CFLAGS) -pie $< -o $@ -lseccomp

tests-build: $(if $(SAN),,$(B)/tests/faults/inject.so $(B)/tests/faults/confine)

.PHONY: faults
faults: deps-test ## Make the system below the exporter fail in all ways, and print what became of it
	@$(submake) tests-build
	@rm -f $(B)/faults.table
	@cd tests/process && WIDEEP_BUILD='$(CURDIR)/$(B)' WIDEEP_FAULTS_TABLE='$(CURDIR)/$(B)/faults.table' \
		$(PYTHON) -m pytest -q -p no:cacheprovider -W ignore::pytest.PytestUnknownMarkWarning -n $(TEST_JOBS) test_faults.py test_privilege.py test_syscalls.py; \
		status=$$?; sort $(CURDIR)/$(B)/faults.table; exit $$status

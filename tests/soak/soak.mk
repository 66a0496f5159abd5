# Everything at once, for a while: tests/soak/soak.py.
SOAK_SECONDS ?= 600
SOAK_SEED ?=
SOAK_SRCS := tests/soak/writer.c
C_SRCS += $(SOAK_SRCS)
FORMATTED += $(SOAK_SRCS)
NO_COMPILE += soak
SOAK_WRITER := $(B)/tests/soak/writer

tests-build: $(SOAK_WRITER)

$(B)/obj/tests/soak/%.o: tests/soak/%.c $(B)/gen/flags
	$(call say,CC,$<) mkdir -p $(@D)
	$(Q)$(CC) $(PROGRAM_CFLAGS) $(DEPFLAGS) -c $< -o $@

$(SOAK_WRITER): $(B)/obj/tests/soak/writer.o $(B)/gen/flags
	$(link)
	$(Q)$(LINK_C) $(LDLIBS)

.PHONY: soak soak-build
soak: deps-test ## Writers, scrapers and faults at random for SOAK_SECONDS (600); SOAK_SEED repeats a run
	@$(submake) soak-build
	@$(PYTHON) tests/soak/soak.py --build $(B) --seconds $(SOAK_SECONDS) $(if $(SOAK_SEED),--seed $(SOAK_SEED))

soak-build: all $(SOAK_WRITER)

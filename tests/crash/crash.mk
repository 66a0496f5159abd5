# The crash campaign: a writer that is killed at each of its test points.

CRASH_SRCS := $(wildcard tests/crash/*.c)
C_SRCS += $(CRASH_SRCS)
FORMATTED += $(CRASH_SRCS) $(wildcard tests/crash/*.h)
CRASH_PROGRAM := $(B)/tests/crash/crash

tests-build: $(CRASH_PROGRAM)

$(B)/obj/tests/crash/%.o: tests/crash/%.c $(B)/gen/flags | $(B)/gen/version.h libraries
	$(call say,CC,$<) mkdir -p $(@D)
	$(Q)$(CC) $(PROGRAM_CFLAGS) -Itests/crash $(DEPFLAGS) -c $< -o $@

$(CRASH_PROGRAM): $(call objs,$(CRASH_SRCS)) $(ARCHIVE) $(B)/gen/flags
	$(link)
	$(Q)$(LINK_C) $(PROGRAM_LIBS)

# Fuzz targets, see fuzz.h: tests/fuzz/<target>.c beside fuzz.c and page.c, with clang's libFuzzer. They are built on
# their own, whatever the variant: the whole product again, with AddressSanitizer and UndefinedBehaviorSanitizer.
#
# FUZZ_SECONDS: how long each target runs. FUZZ_TARGETS: which.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= $(FUZZ_ALL)
FUZZ_CC ?= clang
FUZZ_HELPERS := tests/fuzz/fuzz.c tests/fuzz/page.c
FUZZ_SRCS := $(wildcard tests/fuzz/*.c)
FUZZ_ALL := $(patsubst tests/fuzz/%.c,%,$(filter-out $(FUZZ_HELPERS),$(FUZZ_SRCS)))
C_SRCS += $(FUZZ_SRCS)
FORMATTED += $(FUZZ_SRCS) $(wildcard tests/fuzz/*.h)
NO_COMPILE += fuzz deps-fuzz
F := build/fuzz

FUZZ_SAN := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
# What judges is trusted, and fast; what is judged is watched, and guides the fuzzer.
FUZZ_INSTRUMENT = $(if $(filter tests/fuzz/%,$<),-O2 $(WARN_BOTH),-O1 $(FUZZ_SAN) -fsanitize=fuzzer-no-link)
FUZZ_CFLAGS = -std=gnu11 -D_GNU_SOURCE -gline-tables-only -Iinclude -Ishm-abi -I$(B)/gen \
	$(PKG_CFLAGS) $(CPPFLAGS)
FUZZ_WRAP := -Wl,--wrap=clock_gettime,--wrap=getrandom
fuzz_objs = $(patsubst %.c,$(F)/obj/%.o,$(1))
FUZZ_PROGRAMS := $(addprefix $(F)/,$(FUZZ_ALL))

.PHONY: fuzz fuzz-build deps-fuzz
fuzz: deps-fuzz ## Fuzz each target for FUZZ_SECONDS (60): tests/fuzz
	@$(submake) fuzz-build
	@$(PYTHON) tests/fuzz/run.py --build $(F) --seconds $(FUZZ_SECONDS) $(FUZZ_TARGETS)

deps-fuzz: deps-test

fuzz-build: $(FUZZ_PROGRAMS)

# The tests run them with the plain build alone.
ifeq ($(VARIANT)$(if $(T),$(if $(findstring fuzz,$(T)),,no)),)
run-tests: fuzz-build
endif

$(F)/gen/flags: FORCE
	$(call write_if_changed,$(call quoted,$(FUZZ_CC) $(FUZZ_CFLAGS) $(FUZZ_SAN) $(LIB_SRCS)))

$(F)/obj/%.o: %.c $(F)/gen/flags | $(B)/gen/version.h $(PROTO_HEADERS) $(TABLES) libraries
	$(call say,FUZZ,$<) mkdir -p $(@D)
	$(Q)$(FUZZ_CC) $(FUZZ_CFLAGS) $(FUZZ_INSTRUMENT) $(DEPFLAGS) -c $< -o $@

$(F)/obj/gen/%.o: $(B)/gen/%.c $(F)/gen/flags
	$(call say,FUZZ,$<) mkdir -p $(@D)
	$(Q)$(FUZZ_CC) $(FUZZ_CFLAGS) -O2 -w $(DEPFLAGS) -c $< -o $@

$(F)/libwideep.a: $(call fuzz_objs,$(LIB_SRCS)) $(patsubst src/%.proto,$(F)/obj/gen/%.pb-c.o,$(PROTO_SRCS))
	$(call say,AR,$@) rm -f $@
	$(Q)$(AR) rcs $@ $^

$(F)/segment: private FUZZ_WRAP += -Wl,--wrap=munmap
$(FUZZ_PROGRAMS): $(F)/%: $(F)/obj/tests/fuzz/%.o $(call fuzz_objs,$(FUZZ_HELPERS)) $(F)/libwideep.a
	$(call say,LD,$@)
	$(Q)$(FUZZ_CC) -pthread $(FUZZ_SAN) -fsanitize=fuzzer $(FUZZ_WRAP) -o $@ $(filter %.o,$^) $(F)/libwideep.a $(PKG_LIBS) -lm

-include $(patsubst %.o,%.d,$(call fuzz_objs,$(FUZZ_SRCS) $(LIB_SRCS)))

# wideep-exporter: `make help` lists the targets.

VERSION := 0.1.0
SOVERSION := 0

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules
SHELL := /bin/bash

# ---- what the user may set --------------------------------------------------------------------

CFLAGS ?= -O2 -g
CXXFLAGS ?= -O2 -g
PREFIX ?= /usr/local
DESTDIR ?=
BINDIR ?= $(PREFIX)/bin
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
MANDIR ?= $(PREFIX)/share/man
DOCDIR ?= $(PREFIX)/share/doc/wideep-exporter
SYSTEMD_UNITDIR ?= $(PREFIX)/lib/systemd/system
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
INSTALL ?= install
LDCONFIG ?= PATH="$$PATH:/usr/sbin:/sbin" ldconfig
PKG_CONFIG ?= pkg-config
PROTOC_C ?= protoc-c
# Of the build and of the tests, whose Debian packages belong to this one, which need not be the first on PATH.
PYTHON ?= /usr/bin/python3
CLANG_FORMAT ?= clang-format
CLANG_TIDY ?= clang-tidy
CPPCHECK ?= cppcheck
MANDOC ?= mandoc

JOBS ?= $(shell nproc 2>/dev/null || echo 2)
# Process tests mostly wait, so more of them than cores.
TEST_JOBS ?= 6
# TEST_MARK: a pytest marker expression; T: only tests whose names contain it.
TEST_MARK ?=
T ?=

# ---- variants: VARIANT=asan and so on build into a directory of their own ---------------------

VARIANT ?=
SAN_asan := address
SAN_ubsan := undefined
SAN_tsan := thread
SAN_asan-ubsan := address,undefined
SAN ?= $(SAN_$(VARIANT))
comma := ,
ifneq ($(SAN),)
ifeq ($(VARIANT),)
override VARIANT := san-$(subst $(comma),-,$(SAN))
endif
endif
B := build$(addprefix /,$(VARIANT))

# ---- sources ----------------------------------------------------------------------------------

MAIN_SRCS := $(wildcard src/main.c)
SIM_SRCS := $(wildcard src/sim*.c)
DUMP_SRCS := $(wildcard src/dump*.c)
TOP_SRCS := $(wildcard src/top*.c)
# Those that its unit test can do without a terminal.
TOP_TESTED_SRCS := $(filter-out src/top.c src/top_screen.c,$(TOP_SRCS))
LIB_SRCS := $(filter-out $(MAIN_SRCS) $(SIM_SRCS) $(DUMP_SRCS) $(TOP_SRCS),$(wildcard src/*.c))
SO_SRCS := $(wildcard shm-abi/wideep_shm.c)
PROTO_SRCS := $(wildcard src/*.proto)
UNIT_SRCS := $(wildcard tests/unit/test_*.c)
# Shared helpers of the unit tests: linked into each of them.
UNIT_HELPER_SRCS := $(filter-out $(UNIT_SRCS),$(wildcard tests/unit/*.c))
ABI_C_SRCS := $(wildcard tests/abi/*.c)
ABI_CC_SRCS := $(wildcard tests/abi/*.cc)
BENCH_SRCS := $(wildcard tests/bench/*.c)
BENCH_CC_SRCS := $(wildcard tests/bench/*.cc)
ABI_HEADER := $(wildcard shm-abi/wideep_shm.h)
MAN_PAGES := $(wildcard deploy/man/*.[1-8])
CMAKE_FILES := $(wildcard shm-abi/*.cmake.in)
# Built by others, in their own ways, and by the tests: no part of `all`.
EXAMPLE_C_SRCS := $(wildcard shm-abi/examples/*.c)
EXAMPLE_CC_SRCS := $(wildcard shm-abi/examples/*.cc)
PYTHON_C_SRCS := $(wildcard shm-abi/python/src/*.c)
C_SRCS := $(MAIN_SRCS) $(SIM_SRCS) $(DUMP_SRCS) $(TOP_SRCS) $(LIB_SRCS) $(SO_SRCS) $(UNIT_SRCS) $(UNIT_HELPER_SRCS) $(ABI_C_SRCS) $(BENCH_SRCS)
CC_SRCS := $(ABI_CC_SRCS) $(BENCH_CC_SRCS)
FORMATTED := $(C_SRCS) $(CC_SRCS) $(EXAMPLE_C_SRCS) $(EXAMPLE_CC_SRCS) $(PYTHON_C_SRCS) \
	$(wildcard include/*.h shm-abi/*.h src/*.h tests/unit/*.h tests/abi/*.h tests/bench/*.h)

ABI_NAMES := $(notdir $(basename $(ABI_C_SRCS) $(ABI_CC_SRCS)))
ifneq ($(words $(ABI_NAMES)),$(words $(sort $(ABI_NAMES))))
$(error tests/abi: a .c and a .cc file of the same name would build the same program)
endif

objs = $(patsubst %,$(B)/obj/%.o,$(basename $(1)))

PROTO_HEADERS := $(patsubst src/%.proto,$(B)/gen/%.pb-c.h,$(PROTO_SRCS))
TABLES := $(patsubst src/%.py,$(B)/gen/%.h,$(wildcard src/*.py))
PROTO_OBJS := $(patsubst src/%.proto,$(B)/obj/gen/%.pb-c.o,$(PROTO_SRCS))

PROGRAMS := $(if $(MAIN_SRCS),$(B)/wideep-exporter) $(if $(SIM_SRCS),$(B)/wideep-sim) \
	$(if $(DUMP_SRCS),$(B)/wideep-dump) $(if $(TOP_SRCS),$(B)/wideep-top)
ARCHIVE := $(B)/obj/libwideep.a
SO_REAL := libwideep_shm.so.$(VERSION)
SO_NAME := libwideep_shm.so.$(SOVERSION)
SHARED := $(if $(SO_SRCS),$(B)/$(SO_REAL) $(B)/$(SO_NAME) $(B)/libwideep_shm.so)
UNIT_PROGRAMS := $(patsubst tests/unit/%.c,$(B)/tests/unit/%,$(UNIT_SRCS))
# The pages' test again, with what compresses where there is no ISA-L.
FALLBACK_PROGRAM := $(B)/tests/unit/test_pages_without_isal
ABI_PROGRAMS := $(addprefix $(B)/tests/abi/,$(ABI_NAMES))
BENCH_PROGRAMS := $(addprefix $(B)/tests/bench/,writer writer_cxx feed reader load bare_mhd)

# Targets that belong to one part of the tests or of the deployment alone are beside it. Such a file may add to
# NO_COMPILE and to C_SRCS; its prerequisites may name what is defined above.
NO_COMPILE :=
include $(wildcard tests/*/*.mk deploy/*.mk deploy/*/*.mk)

# ---- flags ------------------------------------------------------------------------------------

# Nothing is asked of the compiler or of pkg-config for targets that compile nothing.
NO_COMPILE += help clean format deps deps-test deps-bench deps-lint deps-wheel bench bench-quick bench-baseline check check-ci \
	check-all check-matrix check-torch deps-torch asan ubsan tsan demo lint uninstall wheel
ifneq ($(filter-out $(NO_COMPILE),$(or $(MAKECMDGOALS),all)),)

PKGS := libmicrohttpd liburcu-bp gnutls jansson libsystemd yaml-0.1 libcrypt libdeflate libprotobuf-c
# Of one program alone.
CURSES := ncursesw
CURSES_LIBS := $(shell $(PKG_CONFIG) --libs $(CURSES) 2>/dev/null)
PKGS_FOUND := $(shell $(PKG_CONFIG) --exists $(PKGS) $(CURSES) 2>/dev/null && echo yes)
# Compresses four times as fast; not every machine has it.
PKGS_MORE := $(shell $(PKG_CONFIG) --exists libisal 2>/dev/null && echo libisal)
PKG_CFLAGS := $(shell $(PKG_CONFIG) --cflags $(PKGS) $(PKGS_MORE) 2>/dev/null) $(if $(PKGS_MORE),-DHAVE_ISAL)
PKG_LIBS := $(shell $(PKG_CONFIG) --libs $(PKGS) $(PKGS_MORE) 2>/dev/null)
CHECK_CFLAGS := $(shell $(PKG_CONFIG) --cflags check 2>/dev/null)
CHECK_LIBS := $(shell $(PKG_CONFIG) --libs check 2>/dev/null)

# Those of the given flags that the compiler ($1) knows.
supported = $(shell for flag in $(2); do \
	$(1) -Werror $$flag -x c -c /dev/null -o /dev/null 2>/dev/null && printf '%s ' "$$flag"; done)
HARDEN_PROBED := $(call supported,$(CC),-fstack-clash-protection -fcf-protection)
WARN_PROBED := $(call supported,$(CC),-Wlogical-op -Wduplicated-cond -Wduplicated-branches)
CC_VERSION := $(shell $(CC) --version 2>/dev/null | head -n 1 | tr -d '"\\')

endif

WERROR ?= $(if $(filter true 1,$(CI)),1)
WARN_BOTH := -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wformat=2 -Wundef -Wcast-align -Wpointer-arith \
	-Wwrite-strings -Wvla -Wdouble-promotion -Wmissing-declarations $(if $(filter 1,$(WERROR)),-Werror)
WARN_C := $(WARN_BOTH) -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition $(WARN_PROBED)

ifneq ($(SAN),)
SAN_FLAGS := -fsanitize=$(SAN) -fno-omit-frame-pointer $(if $(findstring undefined,$(SAN)),-fno-sanitize-recover=all)
# gcc says with -Wtsan that ThreadSanitizer does not follow fences: worth reading, no reason to stop.
ifneq ($(findstring thread,$(SAN)),)
SAN_FLAGS += $(call supported,$(CC),-Wno-error=tsan)
endif
endif

# The C library refuses to fortify without optimisation, and sanitizers see more without it.
FORTIFY := $(if $(or $(SAN),$(filter -O0 -Og,$(CFLAGS))),,-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
HARDEN := -fstack-protector-strong $(HARDEN_PROBED)
HARDEN_LD := -Wl,-z,relro,-z,now

DEPFLAGS = -MMD -MP
BASE_CFLAGS = -std=gnu11 -D_GNU_SOURCE $(CPPFLAGS) -pthread $(WARN_C) $(HARDEN) $(FORTIFY)
PROGRAM_CFLAGS = $(BASE_CFLAGS) -fPIE $(SAN_FLAGS) -Iinclude -Ishm-abi -I$(B)/gen $(PKG_CFLAGS) $(CFLAGS)
# Loaded by programs that are not built with a sanitizer (such as python), so never with one.
# Its functions are the header's definitions, which need no declaration before.
SO_CFLAGS = $(BASE_CFLAGS) -Wno-missing-prototypes -Wno-missing-declarations -fPIC -fno-semantic-interposition -Iinclude -Ishm-abi -I$(B)/gen $(CFLAGS)
# Strict C11 and C++17: the ABI header must not need the compilers' extensions.
ABI_CFLAGS = -std=c11 -D_GNU_SOURCE $(CPPFLAGS) -pthread $(WARN_C) $(HARDEN) $(FORTIFY) -fPIE $(SAN_FLAGS) -Ishm-abi $(CFLAGS)
ABI_CXXFLAGS = -std=c++17 -D_GNU_SOURCE $(CPPFLAGS) -pthread $(WARN_BOTH) $(HARDEN) $(FORTIFY) -fPIE $(SAN_FLAGS) -Ishm-abi \
	$(CXXFLAGS)
PROGRAM_LDFLAGS = -pie -pthread $(HARDEN_LD) $(SAN_FLAGS) $(LDFLAGS)
PROGRAM_LIBS = $(PKG_LIBS) -lm $(LDLIBS)

# V=1 shows the commands.
ifeq ($(V),1)
say :=
Q :=
else
say = @printf '  %-4s %s\n' $(1) '$(2)';
Q := @
endif

# ---- build ------------------------------------------------------------------------------------

.PHONY: all tests-build
all: $(PROGRAMS) $(SHARED) ## Build the programs and libwideep_shm.so into build/

tests-build: all $(UNIT_PROGRAMS) $(FALLBACK_PROGRAM) $(ABI_PROGRAMS) $(BENCH_PROGRAMS) ## Build the test programs too

.PHONY: FORCE
FORCE:

# Files written anew only when their content changes, so that what depends on them is not rebuilt for
# nothing. $1: the text.
write_if_changed = @mkdir -p $(@D); printf '%s\n' $(1) >$@.new; \
	if cmp -s $@.new $@; then rm -f $@.new; else mv -f $@.new $@; fi
quoted = '$(subst ','\'',$(1))'

# Only this directory's own repository counts, not one that an unpacked archive happens to lie in. The
# owner of the checkout may differ from who builds (sudo make install, containers).
COMMIT ?= $(shell test -e .git && git --no-optional-locks -c safe.directory='*' describe --always --dirty \
	--abbrev=12 --exclude='*' 2>/dev/null || echo unknown)

$(B)/gen/version.h: FORCE
	$(call write_if_changed,$(call quoted,/* Generated. */) $(call quoted,#ifndef WIDEEP_VERSION_H) \
		$(call quoted,#define WIDEEP_VERSION_H) $(call quoted,#define WIDEEP_VERSION "$(VERSION)") \
		$(call quoted,#define WIDEEP_COMMIT "$(COMMIT)") $(call quoted,#define WIDEEP_COMPILER "$(CC_VERSION)") \
		'#endif')

# Objects are rebuilt when the compiler or its flags change.
$(B)/gen/flags: FORCE
	$(call write_if_changed,$(call quoted,$(CC) $(CC_VERSION)) $(call quoted,$(PROGRAM_CFLAGS)) \
		$(call quoted,$(CXX) $(ABI_CXXFLAGS)) $(call quoted,$(PROGRAM_LDFLAGS) $(PROGRAM_LIBS)))

# The archive is rebuilt when a source file goes away.
$(B)/gen/sources: FORCE
	$(call write_if_changed,$(call quoted,$(LIB_SRCS) / $(MAIN_SRCS) / $(SIM_SRCS) / $(DUMP_SRCS) / $(TOP_SRCS) / $(UNIT_HELPER_SRCS)))

.PHONY: libraries
libraries:
	@$(if $(PKGS_FOUND),:,echo "$(PKGS) $(CURSES) not found by $(PKG_CONFIG); 'make deps' installs what the build needs" >&2; exit 1)

$(B)/gen/%.pb-c.c $(B)/gen/%.pb-c.h &: src/%.proto | libraries
	$(call say,GEN,$<) mkdir -p $(@D)
	$(Q)$(PROTOC_C) --proto_path=src --c_out=$(B)/gen $<

$(B)/gen/live_page.h: src/live.html
$(B)/gen/%.h: src/%.py
	$(call say,GEN,$<) mkdir -p $(@D)
	$(Q)$(PYTHON) $< >$@

# Not our code: our warnings are not for it.
$(B)/obj/gen/%.o: $(B)/gen/%.c $(B)/gen/flags
	$(call say,CC,$<) mkdir -p $(@D)
	$(Q)$(CC) $(PROGRAM_CFLAGS) -w $(DEPFLAGS) -c $< -o $@

$(B)/obj/src/%.o: src/%.c $(B)/gen/flags | $(B)/gen/version.h $(PROTO_HEADERS) $(TABLES) libraries
	$(call say,CC,$<) mkdir -p $(@D)
	$(Q)$(CC) $(PROGRAM_CFLAGS) $(DEPFLAGS) -c $< -o $@

$(B)/obj/tests/unit/%.o: tests/unit/%.c $(B)/gen/flags | $(B)/gen/version.h $(PROTO_HEADERS) $(TABLES) libraries
	$(call say,CC,$<) mkdir -p $(@D)
	$(Q)$(CC) $(PROGRAM_CFLAGS) -Itests/unit $(CHECK_CFLAGS) $(DEPFLAGS) -c $< -o $@

$(B)/obj/without_isal/%.o: src/%.c $(B)/gen/flags | $(B)/gen/version.h libraries
	$(call say,CC,$<) mkdir -p $(@D)
	$(Q)$(CC) $(filter-out -DHAVE_ISAL,$(PROGRAM_CFLAGS)) $(DEPFLAGS) -c $< -o $@

$(B)/obj/shm-abi/%.o: shm-abi/%.c $(B)/gen/flags | $(B)/gen/version.h
	$(call say,CC,$<) mkdir -p $(@D)
	$(Q)$(CC) $(SO_CFLAGS) $(DEPFLAGS) -c $< -o $@

$(B)/obj/tests/abi/%.o: tests/abi/%.c $(B)/gen/flags
	$(call say,CC,$<) mkdir -p $(@D)
	$(Q)$(CC) $(ABI_CFLAGS) $(DEPFLAGS) -c $< -o $@

$(B)/obj/tests/abi/%.o: tests/abi/%.cc $(B)/gen/flags
	$(call say,CXX,$<) mkdir -p $(@D)
	$(Q)$(CXX) $(ABI_CXXFLAGS) $(DEPFLAGS) -c $< -o $@

$(B)/obj/tests/bench/%.o: tests/bench/%.c $(B)/gen/flags | $(B)/gen/version.h $(PROTO_HEADERS) libraries
	$(call say,CC,$<) mkdir -p $(@D)
	$(Q)$(CC) $(PROGRAM_CFLAGS) $(DEPFLAGS) -c $< -o $@

$(B)/obj/tests/bench/%.o: tests/bench/%.cc $(B)/gen/flags
	$(call say,CXX,$<) mkdir -p $(@D)
	$(Q)$(CXX) $(ABI_CXXFLAGS) $(DEPFLAGS) -c $< -o $@

$(ARCHIVE): $(call objs,$(LIB_SRCS)) $(PROTO_OBJS) $(B)/gen/sources
	$(call say,AR,$@) mkdir -p $(@D); rm -f $@
	$(Q)$(AR) rcs $@ $(filter %.o,$^)

link = $(call say,LD,$@) mkdir -p $(@D)
# Objects first: an archive only answers what was asked before it.
LINK_C = $(CC) $(PROGRAM_LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^)

$(B)/wideep-exporter: $(call objs,$(MAIN_SRCS))
$(B)/wideep-sim: $(call objs,$(SIM_SRCS))
$(B)/wideep-dump: $(call objs,$(DUMP_SRCS))
$(B)/wideep-top: $(call objs,$(TOP_SRCS))
$(B)/wideep-top: private LDLIBS += $(CURSES_LIBS)
$(PROGRAMS): $(ARCHIVE) $(B)/gen/flags $(B)/gen/sources
	$(link)
	$(Q)$(LINK_C) $(PROGRAM_LIBS)

$(B)/tests/unit/test_top: $(call objs,$(TOP_TESTED_SRCS))
$(UNIT_PROGRAMS): $(B)/tests/unit/%: $(B)/obj/tests/unit/%.o $(call objs,$(UNIT_HELPER_SRCS)) $(ARCHIVE) $(B)/gen/flags \
		$(B)/gen/sources
	$(link)
	$(Q)$(LINK_C) $(CHECK_LIBS) $(PROGRAM_LIBS)

# Its page.o takes the place of the archive's. Without the library to link with, it cannot be the other one.
$(FALLBACK_PROGRAM): $(B)/obj/tests/unit/test_pages.o $(B)/obj/without_isal/page.o $(call objs,$(UNIT_HELPER_SRCS)) \
		$(ARCHIVE) $(B)/gen/flags
	$(link)
	$(Q)$(LINK_C) $(CHECK_LIBS) $(filter-out -lisal,$(PROGRAM_LIBS))

$(addprefix $(B)/tests/abi/,$(notdir $(basename $(ABI_C_SRCS)))): $(B)/tests/abi/%: $(B)/obj/tests/abi/%.o $(B)/gen/flags
	$(link)
	$(Q)$(LINK_C) -lm $(LDLIBS)

$(addprefix $(B)/tests/abi/,$(notdir $(basename $(ABI_CC_SRCS)))): $(B)/tests/abi/%: $(B)/obj/tests/abi/%.o $(B)/gen/flags
	$(link)
	$(Q)$(CXX) $(PROGRAM_LDFLAGS) -o $@ $(filter %.o,$^) $(LDLIBS)

$(BENCH_PROGRAMS): $(B)/tests/bench/%: $(B)/obj/tests/bench/%.o $(B)/obj/tests/bench/bench.o $(B)/gen/flags
	$(link)
	$(Q)$(LINK_C) $(PROGRAM_LIBS)
$(B)/tests/bench/reader: $(B)/obj/tests/bench/inside.o $(ARCHIVE)
$(B)/tests/bench/writer_cxx: private CC := $(CXX)

$(B)/$(SO_REAL): $(call objs,$(SO_SRCS)) shm-abi/wideep_shm.map $(B)/gen/flags
	$(link)
	$(Q)$(CC) -shared -pthread -Wl,-soname,$(SO_NAME) -Wl,--version-script=shm-abi/wideep_shm.map -Wl,--no-undefined $(HARDEN_LD) $(LDFLAGS) -o $@ $(filter %.o,$^) $(LDLIBS)

$(B)/$(SO_NAME) $(B)/libwideep_shm.so: $(B)/$(SO_REAL)
	$(Q)ln -sfn $(SO_REAL) $@

# Keep the objects of test programs: they are intermediate files to make.
.SECONDARY:

-include $(patsubst %.o,%.d,$(call objs,$(C_SRCS) $(CC_SRCS)) $(PROTO_OBJS)) $(B)/obj/without_isal/page.d

# ---- tests ------------------------------------------------------------------------------------

# A further make reads this file again after packages were installed. It gets its own -j unless the
# caller's make already hands out jobs.
submake = $(MAKE) --no-print-directory $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(JOBS))

.PHONY: run-tests
run-tests: tests-build
	@$(PYTHON) tests/run --build $(B) --san '$(SAN)' --cc '$(CC)' --cxx '$(CXX)' --jobs $(JOBS) --test-jobs $(TEST_JOBS) \
		--mark '$(TEST_MARK)' --only '$(T)' $(if $(TALLY),--tally $(TALLY) --label $(or $(VARIANT),plain)) $(UNIT_PROGRAMS) $(FALLBACK_PROGRAM)

.PHONY: check check-ci check-all check-matrix check-torch abi-header asan ubsan tsan
check: deps-test ## Install what the tests need, build, run all tests (T=name: only those)
	@$(submake) run-tests

asan ubsan tsan: deps-test ## Build with that sanitizer and run all tests
	@$(submake) VARIANT=$@ SAN=$(SAN_$@) run-tests

check-torch: deps-test deps-torch ## The tests of the vLLM plugin with real torch tensors instead of the shim's
	@WIDEEP_TEST_TORCH=1 $(submake) run-tests T=process/test_vllm

# Several builds, one closing line. `one` makes one of them; what fails before it could count its tests,
# for example in the compiler, counts as one failed test.
several = mkdir -p build; : >build/$@.tally; status=0; \
	one() { echo "== $$*"; before=$$(wc -l <build/$@.tally); \
		$(submake) "$$@" TALLY=build/$@.tally || { status=1; \
			[ "$$(wc -l <build/$@.tally)" != "$$before" ] || echo '0 1 0' >>build/$@.tally; }; }
total = $(PYTHON) tests/run --total build/$@.tally || status=1; exit $$status

check-ci: deps-test ## The tests but the slow ones, with address+undefined and with thread sanitizer
	+@$(several); \
	one run-tests VARIANT=asan-ubsan SAN=address,undefined TEST_MARK='not slow'; \
	one run-tests VARIANT=tsan SAN=thread TEST_MARK='not slow'; \
	$(total)

check-matrix: deps-test ## The ABI header by each compiler and standard, all tests with clang
	+@$(several); \
	one abi-header; \
	one run-tests VARIANT=clang SAN= CC=clang CXX=clang++; \
	$(total)

check-all: deps-test deps-lint ## check, check-matrix, asan, ubsan, tsan and lint in full; what the fault campaign tried
	+@$(several); rm -f build/faults; export WIDEEP_FAULTS='$(CURDIR)/build/faults'; \
	WIDEEP_TEST_DOUBLES=100000000 one run-tests VARIANT= SAN=; \
	one abi-header; \
	one run-tests VARIANT=clang SAN= CC=clang CXX=clang++; \
	one run-tests VARIANT=asan SAN=address; \
	one run-tests VARIANT=ubsan SAN=undefined; \
	one run-tests VARIANT=tsan SAN=thread; \
	one check-cross; \
	one check-live; \
	one lint; \
	$(PYTHON) tests/campaign.py build/faults || status=1; \
	$(total)

abi-header:
	@set -e; for header in $(ABI_HEADER); do \
		for cc in gcc clang; do for std in c11 gnu11 c17 gnu17; do \
			$$cc -std=$$std -D_GNU_SOURCE -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -fsyntax-only -x c \
				-include $$header /dev/null; echo "ok   $$header: $$cc -std=$$std"; done; done; \
		for cxx in g++ clang++; do for std in c++17 gnu++17 c++20; do \
			$$cxx -std=$$std -D_GNU_SOURCE -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -fsyntax-only -x c++ \
				-include $$header /dev/null; echo "ok   $$header: $$cxx -std=$$std"; done; done; \
	done

.PHONY: bench bench-quick bench-baseline bench-build
bench: deps-bench ## Measure everything against its floor and its peers (6 to 7 minutes): tests/bench/README.md
	@$(submake) bench-build
	@$(PYTHON) tests/bench/run.py --build $(B)

bench-quick: deps-bench ## The same in under a minute
	@$(submake) bench-build
	@$(PYTHON) tests/bench/run.py --build $(B) --form quick

bench-baseline: deps-bench ## Renew the instruction counts that later runs are compared with
	@$(submake) bench-build
	@$(PYTHON) tests/bench/run.py --build $(B) --renew-baseline

# What is measured from Python is the distribution that users install.
bench-build: all $(BENCH_PROGRAMS)
	@$(submake) wheel >$(B)/wheel.log 2>&1 || { cat $(B)/wheel.log; exit 1; }
	@rm -rf $(B)/bench/python; $(PYTHON) -m zipfile -e $(B)/wheel/*.whl $(B)/bench/python

.PHONY: demo
demo: deps ## Install what the demo needs, build, run deploy/demo.sh
	@$(submake) all
	@WIDEEP_BUILD='$(CURDIR)/$(B)' deploy/demo.sh

# ---- packages ---------------------------------------------------------------------------------

# Installs the Debian packages listed in the given files. The state is asked of dpkg once before and,
# if something had to be installed, once after: apt-get's exit status alone does not tell. apt-get
# update has no option to wait for another apt, hence the attempts.
define install_packages
@set -u; want=$$(sed 's/#.*//' $(1) | xargs -n1 | sort -u); \
if ! command -v dpkg-query >/dev/null; then \
	echo "No dpkg here; this needs the equivalents of these Debian packages:" $$want; exit 0; \
fi; \
missing() { \
	comm -23 <(printf '%s\n' $$want) \
		<(dpkg-query -W -f '$${db:Status-Status} $${Package}\n' $$want 2>/dev/null | sed -n 's/^installed //p' | sort -u); \
}; \
lack=$$(missing); \
[ -n "$$lack" ] || exit 0; \
root=; \
if [ "$$(id -u)" != 0 ]; then \
	if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then root='sudo -n'; else \
		echo "Packages are missing, run as root: apt-get install -y --no-install-recommends" $$lack >&2; exit 1; \
	fi; \
fi; \
apt="$$root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=500 -o Acquire::Retries=3"; \
echo "Installing" $$lack; \
for attempt in 1 2 3 4 5; do $$apt update </dev/null && break; sleep 5; done; \
$$apt install -y --no-install-recommends $$lack </dev/null; \
lack=$$(missing); \
[ -z "$$lack" ] || { echo "Could not install:" $$lack >&2; exit 1; }
endef

.PHONY: deps deps-test deps-bench deps-lint deps-torch deps-wheel
deps: ## Install the Debian packages the build and the demo need
	$(call install_packages,tests/deps-build.txt)

deps-test: ## Those the tests need too
	$(call install_packages,tests/deps-build.txt tests/deps-wheel.txt tests/deps-test.txt)

deps-bench: ## Those of make bench
	$(call install_packages,tests/deps-build.txt tests/deps-bench.txt)

deps-lint: ## Those of make lint
	$(call install_packages,tests/deps-build.txt tests/deps-lint.txt)

deps-torch:
	$(call install_packages,tests/deps-torch.txt)

deps-wheel: ## Those of make wheel
	$(call install_packages,tests/deps-wheel.txt)

# ---- Python -----------------------------------------------------------------------------------

# Of a copy: setuptools writes beside what it builds, and the header and the licence belong into the sdist.
.PHONY: wheel
wheel: deps-wheel ## Build the wheel and the sdist of shm-abi/python into build/wheel/
	rm -rf $(B)/python $(B)/wheel
	mkdir -p $(B)
	cp -R shm-abi/python $(B)/python
	cp $(ABI_HEADER) LICENSE $(B)/python
	cd $(B)/python && $(PYTHON) -m build --no-isolation --outdir ../wheel .

# ---- style ------------------------------------------------------------------------------------

.PHONY: lint lint-format lint-tidy lint-cppcheck lint-man format
lint: deps-lint ## Formatting, clang-tidy, cppcheck, manual pages
	@$(submake) -k --output-sync=target lint-format lint-tidy lint-cppcheck lint-man

lint-format:
	@$(if $(FORMATTED),$(CLANG_FORMAT) --dry-run --Werror $(FORMATTED))

TIDY_CFLAGS = -std=gnu11 -D_GNU_SOURCE -Iinclude -Ishm-abi -Itests/unit -I$(B)/gen $(PKG_CFLAGS) $(CHECK_CFLAGS)
TIDY_CXXFLAGS = -std=c++17 -D_GNU_SOURCE -Ishm-abi
lint-tidy: $(B)/gen/version.h $(PROTO_HEADERS) $(TABLES)
	@exec 2> >(grep -v ' warnings\? generated\.$$' >&2); status=0; \
	printf '%s\n' $(C_SRCS) $(EXAMPLE_C_SRCS) | xargs -P $(JOBS) -I{} $(CLANG_TIDY) --quiet {} -- $(TIDY_CFLAGS) || status=1; \
	printf '%s\n' $(CC_SRCS) $(EXAMPLE_CC_SRCS) | xargs -P $(JOBS) -I{} $(CLANG_TIDY) --quiet {} -- $(TIDY_CXXFLAGS) \
		|| status=1; \
	$(CLANG_TIDY) --quiet $(PYTHON_C_SRCS) -- $(TIDY_CFLAGS) $$($(PYTHON)-config --includes) || status=1; \
	exit $$status

# The check library's macros hide the control flow that cppcheck follows, so the unit tests stay out.
# cppcheck reads no system headers: what the ABI header and the generated ones ask of the platform is given here.
# On 64-bit Linux NULL is a pointer and all zero bits are 0.0, which the two suppressed checks doubt.
CPPCHECK_PLATFORM := -D_GNU_SOURCE -D__x86_64__ -D__LP64__ -D__SIZEOF_POINTER__=8 -DMADV_WIPEONFORK=18 -DO_PATH=010000000 \
	-DPROTOBUF_C_VERSION_NUMBER=1003000 \
	--suppress=varFuncNullUB --suppress=memsetClassFloat
CPPCHECKED = $(filter-out tests/unit/%,$(C_SRCS)) $(CC_SRCS) $(EXAMPLE_C_SRCS) $(EXAMPLE_CC_SRCS) $(PYTHON_C_SRCS)
lint-cppcheck: $(B)/gen/version.h $(PROTO_HEADERS) $(TABLES)
	@$(if $(strip $(CPPCHECKED)),$(CPPCHECK) --quiet --std=c11 --std=c++17 --enable=warning$(comma)performance$(comma)portability \
		--error-exitcode=1 --inline-suppr --suppress=missingIncludeSystem $(CPPCHECK_PLATFORM) -Iinclude -Ishm-abi \
		-I$(B)/gen -j $(JOBS) $(CPPCHECKED))

lint-man:
	@$(if $(MAN_PAGES),$(MANDOC) -T lint -W warning $(MAN_PAGES))

format: ## Format the sources in place
	$(if $(FORMATTED),$(CLANG_FORMAT) -i $(FORMATTED))

# ---- install ----------------------------------------------------------------------------------

# pkg-config lets its caller move the prefix: what lies below it is written relative to it.
below_prefix = $(patsubst $(PREFIX)/%,$${prefix}/%,$(1))
man_directory = $(MANDIR)/man$(patsubst .%,%,$(suffix $(1)))
# As they lie here, because they name each other that way.
DOCUMENTS := README.md CHANGELOG.md LICENSE $(wildcard shm-abi/*.md shm-abi/python/README.md shm-abi/examples/* deploy/*.md \
	systemd/*.default)
UNITS := $(wildcard systemd/*.service systemd/*.socket)
PACKAGE_VARIABLES = -e 's|@PREFIX@|$(PREFIX)|g' -e 's|@INCLUDEDIR@|$(1)|g' -e 's|@LIBDIR@|$(2)|g' -e 's|@VERSION@|$(VERSION)|g'
CMAKE_DIRECTORY = $(LIBDIR)/cmake/wideep_shm

.PHONY: install uninstall
install: all ## Install under PREFIX (default /usr/local), below DESTDIR if given
	$(INSTALL) -d '$(DESTDIR)$(BINDIR)' '$(DESTDIR)$(LIBDIR)/pkgconfig' '$(DESTDIR)$(INCLUDEDIR)'
	$(if $(strip $(PROGRAMS)),$(INSTALL) -m 755 $(PROGRAMS) '$(DESTDIR)$(BINDIR)')
ifneq ($(SO_SRCS),)
	$(INSTALL) -m 644 $(B)/$(SO_REAL) '$(DESTDIR)$(LIBDIR)'
	ln -sfn $(SO_REAL) '$(DESTDIR)$(LIBDIR)/$(SO_NAME)'
	ln -sfn $(SO_NAME) '$(DESTDIR)$(LIBDIR)/libwideep_shm.so'
endif
	$(if $(ABI_HEADER),$(INSTALL) -m 644 $(ABI_HEADER) '$(DESTDIR)$(INCLUDEDIR)')
ifneq ($(wildcard shm-abi/wideep_shm.pc.in),)
	sed $(call PACKAGE_VARIABLES,$(call below_prefix,$(INCLUDEDIR)),$(call below_prefix,$(LIBDIR))) shm-abi/wideep_shm.pc.in \
		>'$(DESTDIR)$(LIBDIR)/pkgconfig/wideep_shm.pc'
	chmod 644 '$(DESTDIR)$(LIBDIR)/pkgconfig/wideep_shm.pc'
endif
	$(foreach file,$(CMAKE_FILES),$(INSTALL) -D -m 644 $(file) '$(DESTDIR)$(CMAKE_DIRECTORY)/$(basename $(notdir $(file)))' && \
		sed -i $(call PACKAGE_VARIABLES,$(INCLUDEDIR),$(LIBDIR)) '$(DESTDIR)$(CMAKE_DIRECTORY)/$(basename $(notdir $(file)))' &&) :
	$(foreach page,$(MAN_PAGES),$(INSTALL) -D -m 644 $(page) '$(DESTDIR)$(call man_directory,$(page))/$(notdir $(page))' &&) :
	$(foreach document,$(DOCUMENTS),$(INSTALL) -D -m 644 $(document) '$(DESTDIR)$(DOCDIR)/$(document)' &&) :
	$(foreach unit,$(UNITS),$(INSTALL) -D -m 644 $(unit) '$(DESTDIR)$(SYSTEMD_UNITDIR)/$(notdir $(unit))' &&) :
	sed -i 's|^ExecStart=/usr/bin/|ExecStart=$(BINDIR)/|' '$(DESTDIR)$(SYSTEMD_UNITDIR)/wideep-exporter.service'
	$(INSTALL) -D -m 644 systemd/wideep-exporter.sysusers '$(DESTDIR)$(SYSUSERSDIR)/wideep-exporter.conf'
ifneq ($(SO_SRCS),)
# The dynamic linker finds a library by its cache. Below DESTDIR that is the packager's to do, and without root it
# cannot be done.
	@if [ -z '$(DESTDIR)' ] && [ "$$(id -u)" = 0 ]; then $(LDCONFIG) || :; \
	elif [ -z '$(DESTDIR)' ]; then echo 'As root, run ldconfig, so that $(SO_NAME) is found in $(LIBDIR).'; fi
endif

# Directories that others share are left alone, even when they are empty.
OWN_DIRECTORIES = $(addprefix $(DOCDIR)/,shm-abi/python shm-abi/examples shm-abi deploy systemd) $(DOCDIR) $(CMAKE_DIRECTORY) \
	$(if $(DESTDIR)$(filter-out /usr /usr/local,$(PREFIX)),$(LIBDIR)/pkgconfig $(LIBDIR)/cmake \
	$(SYSTEMD_UNITDIR) $(patsubst %/,%,$(dir $(SYSTEMD_UNITDIR))) $(SYSUSERSDIR) \
	$(sort $(foreach page,$(MAN_PAGES),$(call man_directory,$(page)))) $(MANDIR) $(BINDIR) $(LIBDIR) $(INCLUDEDIR) \
	$(patsubst %/,%,$(dir $(DOCDIR)) $(dir $(MANDIR))) $(PREFIX))

uninstall: ## Remove what install put there
	rm -f $(foreach name,wideep-exporter wideep-sim wideep-dump wideep-top,'$(DESTDIR)$(BINDIR)/$(name)') \
		$(foreach name,libwideep_shm.so $(SO_NAME) $(SO_REAL) pkgconfig/wideep_shm.pc,'$(DESTDIR)$(LIBDIR)/$(name)') \
		$(foreach name,$(notdir $(ABI_HEADER)),'$(DESTDIR)$(INCLUDEDIR)/$(name)') \
		$(foreach file,$(CMAKE_FILES),'$(DESTDIR)$(CMAKE_DIRECTORY)/$(basename $(notdir $(file)))') \
		$(foreach page,$(MAN_PAGES),'$(DESTDIR)$(call man_directory,$(page))/$(notdir $(page))') \
		$(foreach document,$(DOCUMENTS),'$(DESTDIR)$(DOCDIR)/$(document)') \
		$(foreach unit,$(UNITS),'$(DESTDIR)$(SYSTEMD_UNITDIR)/$(notdir $(unit))') \
		'$(DESTDIR)$(SYSUSERSDIR)/wideep-exporter.conf'
	@$(foreach directory,$(OWN_DIRECTORIES),rmdir '$(DESTDIR)$(directory)' 2>/dev/null;) :

# ---- the rest ---------------------------------------------------------------------------------

.PHONY: clean help
clean: ## Remove build/
	rm -rf build

help: ## This list
	@awk -F ':.*## ' '/^[a-z][a-z -]*:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(filter-out %.d,$(MAKEFILE_LIST))

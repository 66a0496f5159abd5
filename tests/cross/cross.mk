# Other processors, under qemu-user: the whole product on aarch64, a big-endian writer on s390x. qemu on x86-64 does not
# reorder memory accesses as a real aarch64 does: that is for tests/model.
NO_COMPILE += check-cross deps-cross cross-build
.PHONY: check-cross deps-cross cross-build
CROSS := build/cross
CROSS_SYSROOT := $(CURDIR)/$(CROSS)/aarch64/root
CROSS_ABI := $(addprefix build/aarch64/tests/abi/,layout reader writer)

deps-cross:
	$(call install_packages,tests/deps-build.txt tests/deps-wheel.txt tests/deps-test.txt tests/deps-cross.txt)

check-cross: deps-cross ## The product on aarch64, and a big-endian writer, under qemu
	@$(submake) cross-build
	@WIDEEP_TEST_CROSS='$(CURDIR)/$(CROSS)' $(submake) run-tests T=process/test_cross

cross-build:
	@mkdir -p build
	tests/cross/sysroot $(CROSS)/aarch64 >build/cross-sysroot.log 2>&1 || { tail build/cross-sysroot.log; exit 1; }
	@WIDEEP_SYSROOT='$(CROSS_SYSROOT)' $(submake) VARIANT=aarch64 SAN= CC='aarch64-linux-gnu-gcc --sysroot=$(CROSS_SYSROOT)' \
		PKG_CONFIG=tests/cross/pkg-config all $(CROSS_ABI)
	@mkdir -p $(CROSS)/s390x
	s390x-linux-gnu-gcc -std=c11 -D_GNU_SOURCE -O2 -static -pthread -Ishm-abi tests/abi/writer.c -o $(CROSS)/s390x/writer -lm

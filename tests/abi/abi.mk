# The baseline of libwideep_shm.so, and the segments that are kept for later versions to read:
# shm-abi/README.md, "Versions".
NO_COMPILE += abi-baseline abi-segments
.PHONY: abi-baseline abi-segments
ABI_BASELINE := tests/abi/libwideep_shm.abi

# Of a library with all its debug information, and nothing in it of the machine that it was made on.
abi-baseline: deps-test ## Renew the baseline that the next versions of libwideep_shm.so are compared with
	@mkdir -p build/abi
	$(CC) -std=gnu11 -D_GNU_SOURCE -g -O1 -fPIC -shared -Wl,-soname,libwideep_shm.so.$(SOVERSION) \
		-Wl,--version-script=shm-abi/wideep_shm.map -o build/abi/libwideep_shm.so shm-abi/wideep_shm.c
	abidw --no-corpus-path --no-comp-dir-path --no-show-locs --type-id-style hash --out-file $(ABI_BASELINE) \
		build/abi/libwideep_shm.so

abi-segments: deps-test ## Keep segments of this minor version of the ABI, once for each
	@$(submake) tests-build
	$(PYTHON) tests/abi/segments/make.py

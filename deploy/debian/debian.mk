# Source tarball and Debian packages.

NO_COMPILE += dist deb

DIST_NAME = wideep-exporter-$(VERSION)
DIST = build/$(DIST_NAME).tar.gz
# Nothing of who made it, when and where is in the tarball, so that the same commit gives the same bytes.
DIST_TAR = tar --sort=name --format=ustar --mtime=@$(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct)) \
	--owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --transform='s,^,$(DIST_NAME)/,' --null --verbatim-files-from

.PHONY: dist deb
dist: ## Source tarball build/wideep-exporter-VERSION.tar.gz of the files that git knows
	@mkdir -p build
	@set -o pipefail; git ls-files -z | $(DIST_TAR) -T - -c | gzip -9n >$(DIST).new
	@mv $(DIST).new $(DIST)
	@echo $(DIST)

# dpkg-buildpackage insists on a directory debian at the top; the tree keeps its own below deploy.
deb: dist ## Debian packages of that tarball into build/deb/
	rm -rf build/deb
	mkdir -p build/deb
	cp $(DIST) build/deb/wideep-exporter_$(VERSION).orig.tar.gz
	tar -xzf $(DIST) -C build/deb
	cp -R build/deb/$(DIST_NAME)/deploy/debian build/deb/$(DIST_NAME)/debian
	cd build/deb/$(DIST_NAME) && env -u MAKEFLAGS -u MAKELEVEL -u MFLAGS COMMIT='$(COMMIT)' \
		dpkg-buildpackage -us -uc $(DEB_BUILD_FLAGS)

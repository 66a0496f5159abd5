# The container images: deploy/container/README.md.

NO_COMPILE += image image-simulator

IMAGE ?= localhost/wideep-exporter:$(VERSION)
SIMULATOR_IMAGE ?= $(subst wideep-exporter,wideep-simulator,$(IMAGE))
BASE_IMAGE ?= docker.io/library/debian:12
BUILDAH ?= buildah
IMAGE_FLAGS ?=
# docker keeps HEALTHCHECK, which oci has no place for, but puts the random name of a container into the digest.
IMAGE_FORMAT ?= oci

# Cached layers would leave their own traces in the image's history, and so in its digest.
build_image = $(BUILDAH) bud --layers=false --format $(IMAGE_FORMAT) --timestamp $(or $(SOURCE_DATE_EPOCH),0) $(IMAGE_FLAGS) \
	--build-arg BASE_IMAGE='$(BASE_IMAGE)' --build-arg VERSION='$(VERSION)' --build-arg REVISION='$(COMMIT)' \
	--target $(1) -f deploy/container/Dockerfile -t '$(2)' .

.PHONY: image image-simulator
image: ## Build the container image IMAGE with buildah, on BASE_IMAGE
	$(call build_image,exporter,$(IMAGE))

image-simulator: ## Build SIMULATOR_IMAGE, an engine for deploy/k8s/example-pod.yaml
	$(call build_image,simulator,$(SIMULATOR_IMAGE))

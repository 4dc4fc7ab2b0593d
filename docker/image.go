package docker

import (
	"context"
	"errors"

	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxImages bounds the cache of labels; a host seldom runs more images than that at once.
const maxImages = 1024

// imageLabels returns the labels of the image that a container was made from. Where the engine keeps images of several
// platforms under one id (the containerd store of engines from 28 on), manifest says which of them; else it is nil.
//
// known is false where the engine answered that it cannot or will not show that image, and the error is not nil only
// where it did not answer.
func (c *Client) imageLabels(ctx context.Context, id string, manifest *ocispec.Descriptor) (labels map[string]string, known bool, err error) {
	key := id
	var options []client.ImageInspectOption
	if manifest != nil {
		key = string(manifest.Digest)
		if manifest.Platform != nil {
			options = append(options, client.ImageInspectWithPlatform(manifest.Platform))
		}
	}
	c.mu.Lock()
	labels, known = c.images[key]
	c.mu.Unlock()
	if known || id == "" {
		return labels, known, nil
	}
	r, err := c.api.ImageInspect(ctx, id, options...)
	switch {
	case client.IsErrConnectionFailed(err), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return nil, false, err
	case err != nil || !describes(r, manifest):
		return nil, false, nil
	}
	if r.Config != nil {
		labels = r.Config.Labels
	}
	c.mu.Lock()
	if len(c.images) >= maxImages {
		clear(c.images)
	}
	c.images[key] = labels
	c.mu.Unlock()
	return labels, true, nil
}

// describes reports whether an answer is of that manifest. Labels of another platform's would be taken for the image's,
// and the image's own for what docker run was told. An engine that has lost an image's configuration answers with an
// empty one, which has no operating system.
func describes(r image.InspectResponse, manifest *ocispec.Descriptor) bool {
	if manifest != nil && (r.Descriptor == nil || r.Descriptor.Digest != manifest.Digest) {
		return false
	}
	return r.Os != ""
}

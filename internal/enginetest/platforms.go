package enginetest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// object is a JSON object.
type object map[string]any

const (
	ociIndex    = "application/vnd.oci.image.index.v1+json"
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociConfig   = "application/vnd.oci.image.config.v1+json"
	ociLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// ociArchive is an image layout in a tar archive, as docker load reads it.
type ociArchive struct {
	*tar.Writer
	err error // the first
}

func (a *ociArchive) file(name string, content []byte) {
	err := a.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))})
	_, writeErr := a.Write(content)
	a.err = errors.Join(a.err, err, writeErr)
}

// blob adds content and returns the descriptor that leads to it.
func (a *ociArchive) blob(mediaType string, content []byte) object {
	digest := fmt.Sprintf("%x", sha256.Sum256(content))
	a.file("blobs/sha256/"+digest, content)
	return object{"mediaType": mediaType, "digest": "sha256:" + digest, "size": len(content)}
}

func (a *ociArchive) json(mediaType string, v object) object {
	content, err := json.Marshal(v)
	a.err = errors.Join(a.err, err)
	return a.blob(mediaType, content)
}

// ImageOfPlatforms is ImageWithLabels for an image that holds one of each architecture, with labels of its own. The engine
// must keep images in containerd. The program in them is the same: only that of the machine's own architecture can run.
func (d *Docker) ImageOfPlatforms(labels map[string]map[string]string) string {
	d.t.Helper()
	content, err := layer()
	if err != nil {
		d.t.Fatal(err)
	}
	name := d.prefix + "image:" + random()
	var buf bytes.Buffer
	a := &ociArchive{Writer: tar.NewWriter(&buf)}
	peer := a.blob(ociLayer, content)
	var manifests []object
	for _, arch := range slices.Sorted(maps.Keys(labels)) {
		config := a.json(ociConfig, object{
			"os": "linux", "architecture": arch, "rootfs": object{"type": "layers", "diff_ids": []any{peer["digest"]}},
			"config": object{"Entrypoint": []string{"/peer"}, "Cmd": []string{"sleep"}, "Labels": labels[arch]},
		})
		m := a.json(ociManifest, object{"schemaVersion": 2, "mediaType": ociManifest, "config": config, "layers": []object{peer}})
		m["platform"] = object{"os": "linux", "architecture": arch}
		manifests = append(manifests, m)
	}
	index := a.json(ociIndex, object{"schemaVersion": 2, "mediaType": ociIndex, "manifests": manifests})
	index["annotations"] = object{"io.containerd.image.name": "docker.io/library/" + name}
	top, err := json.Marshal(object{"schemaVersion": 2, "mediaType": ociIndex, "manifests": []object{index}})
	a.file("index.json", top)
	a.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	if err := errors.Join(err, a.err, a.Close()); err != nil {
		d.t.Fatal(err)
	}
	if _, err := d.try(buf.Bytes(), "load"); err != nil {
		d.t.Fatal(err)
	}
	d.cleanup("image", "rm", "--force", name)
	return name
}

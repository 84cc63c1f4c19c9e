// Package archive is the file that a template is exported to: an OCI image
// layout in a tar file, with one layer that holds the root filesystem. Tools for
// container images read it (`docker load`, `podman load`, `skopeo`); what an image
// has no words for is the label Label of its configuration.
//
//	oci-layout, index.json         what OCI asks for
//	manifest.json                  what `docker load` asks for
//	blobs/sha256/DIGEST            the manifest, the configuration, the layer
//	caisson/memory.json            which memory there is, with a MAC
//	caisson/rootfs.erofs.zst       the very image that the memory lies on
//	caisson/memory/NAME.zst        the files of the memory
//
// The last three are there only where memory was asked for. They mean something
// only to the installation and the team that saved them: nobody else can make
// the MAC.
//
// Reading trusts nothing: what is read into memory is bounded, every blob is
// compared with its digest, and nothing is unpacked. Making a root filesystem of
// the layers is package template/oci's, the whole of an export and an import
// package template/transfer's.
package archive

import (
	"time"

	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/template"
)

// Label is the name of the label, and of the annotation of the manifest, that
// holds About.
const Label = "dev.caisson.template"

// version of About and of the memory's manifest.
const version = 1

const (
	layoutFile = "oci-layout"
	indexFile  = "index.json"
	dockerFile = "manifest.json"
	blobDir    = "blobs/sha256/"
	memoryFile = "caisson/memory.json"
	rootfsFile = "caisson/rootfs.erofs.zst"
	memoryDir  = "caisson/memory/"
	packed     = ".zst"

	// maxText bounds every JSON document that is read.
	maxText = 4 << 20
	// maxEntries bounds the files of an archive.
	maxEntries = 10_000
	// maxCommand bounds the start and ready commands, as recipes do.
	maxCommand = 32 << 10
	// maxSource bounds where a template says that it is from.
	maxSource = 1 << 10
)

// About is what an image has no words for.
type About struct {
	Version int `json:"version"`
	// Name and Tag are those that the template had where it was exported.
	Name string `json:"name"`
	Tag  string `json:"tag,omitempty"`
	// Resources of its sandboxes; zero fields are the server's defaults.
	Resources Resources `json:"resources"`
	// Start and Ready are shell text, empty for none.
	Start string `json:"start,omitempty"`
	Ready string `json:"ready,omitempty"`
	// Source is where the template came from, for people.
	Source string `json:"source,omitempty"`
	// Rootfs is the digest of the root filesystem at its origin.
	Rootfs    string    `json:"rootfs"`
	CreatedAt time.Time `json:"createdAt"`
	// Recipe is what the root filesystem was made of, where that is known.
	Recipe *template.Manifest `json:"recipe,omitempty"`
}

// Resources are those of a template's sandboxes.
type Resources struct {
	CPUs      int   `json:"cpus,omitempty"`
	MemoryMiB int64 `json:"memoryMiB,omitempty"`
	DiskMiB   int64 `json:"diskMiB,omitempty"`
	Processes int64 `json:"processes,omitempty"`
}

// ResourcesOf converts to the form of an archive.
func ResourcesOf(r provider.Resources) Resources {
	return Resources{CPUs: r.CPUs, MemoryMiB: r.MemoryMiB, DiskMiB: r.DiskMiB, Processes: r.Processes}
}

// Provider converts back.
func (r Resources) Provider() provider.Resources {
	return provider.Resources{CPUs: r.CPUs, MemoryMiB: r.MemoryMiB, DiskMiB: r.DiskMiB, Processes: r.Processes}
}

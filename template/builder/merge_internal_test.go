package builder

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/template"
)

const dpkgStatus = "var/lib/dpkg/status"

func tarOf(t *testing.T, name, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg})
	if err == nil {
		_, err = io.WriteString(w, content)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestMergeRecordsPackages: those of the base, those that the steps left, and
// none where the steps left more than is kept.
func TestMergeRecordsPackages(t *testing.T) {
	t.Parallel()
	images, err := image.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	status := func(name string) string {
		return fmt.Sprintf("Package: %s\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n\n", name)
	}
	base, err := template.BuildTar(t.Context(), images, bytes.NewReader(tarOf(t, dpkgStatus, status("of-base"))), template.TarOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var many strings.Builder
	for i := range 100_000 {
		many.WriteString(status(fmt.Sprint("p", i)))
	}
	for name, c := range map[string]struct {
		layer []byte
		want  []template.Package
	}{
		"of the base":  {tarOf(t, "x", "1"), []template.Package{{Name: "of-base", Version: "1", Arch: "all"}}},
		"of the steps": {tarOf(t, dpkgStatus, status("added")), []template.Package{{Name: "added", Version: "1", Arch: "all"}}},
		"too many":     {tarOf(t, dpkgStatus, many.String()), nil},
	} {
		got, err := merge(t.Context(), images, base.Rootfs, func(w io.Writer) error {
			_, err := w.Write(c.layer)
			return err
		})
		if err != nil {
			t.Fatalf("%s: merge() = %v", name, err)
		}
		m, err := template.LoadManifest(images, got.Digest)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, m.Packages); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

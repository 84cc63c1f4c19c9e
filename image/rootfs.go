// Package image keeps root filesystems: content-addressed, read-only EROFS
// files in a directory, written once and shared by every sandbox that uses
// them.
//
// A directory holds, per image, <hex>.erofs and optionally <hex>.json, notes
// about where it came from; both are named by the SHA-256 of the image file.
// Several processes may use one directory at once.
//
// Not here: making images (packages erofs and template) and knowing which are
// still needed (the callers of GC). Imports nothing of this module.
package image

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// Rootfs names one stored root filesystem.
type Rootfs struct {
	// Digest is "sha256:" and 64 lower-case hex digits of the image file.
	Digest string `json:"digest"`
	// Path is the absolute path of the EROFS file on this host.
	Path string `json:"path"`
	// SizeBytes is the length of the file.
	SizeBytes int64 `json:"sizeBytes"`
}

const (
	digestPrefix = "sha256:"
	imageSuffix  = ".erofs"
	notesSuffix  = ".json"
	tempPrefix   = ".tmp-"
)

// parseDigest returns the hex part of a digest.
func parseDigest(digest string) (string, error) {
	h, ok := strings.CutPrefix(digest, digestPrefix)
	if !ok || !isHex(h) {
		return "", fmt.Errorf("digest %.80q is not sha256: and 64 hex digits: %w", digest, errdefs.ErrInvalidArgument)
	}
	return h, nil
}

func isHex(s string) bool {
	if len(s) != 64 {
		return false
	}
	return strings.Trim(s, "0123456789abcdef") == ""
}

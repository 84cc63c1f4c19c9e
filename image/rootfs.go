// Package image keeps root filesystems: content-addressed, read-only EROFS
// files in a directory, written once and shared by every sandbox that uses them.
package image

// Rootfs names one stored root filesystem.
type Rootfs struct {
	// Digest is "sha256:" and 64 lower-case hex digits of the image file.
	Digest string `json:"digest"`
	// Path is the absolute path of the EROFS file on this host.
	Path string `json:"path"`
	// SizeBytes is the length of the file.
	SizeBytes int64 `json:"sizeBytes"`
}

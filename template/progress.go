package template

// Stage is a part of a build.
type Stage string

// The stages of a build from Debian packages, in their order. A build from a
// tar file has StageWrite alone.
const (
	StageResolve  Stage = "resolve"  // fetch package lists, resolve dependencies
	StageDownload Stage = "download" // packages
	StageInstall  Stage = "install"  // unpack and configure, packages
	StageWrite    Stage = "write"    // write the image, bytes read
	StageDone     Stage = "done"
)

// Progress is one step of a build.
type Progress struct {
	Stage Stage
	// Done and Total count what the stage names; Total is 0 while unknown and
	// may grow.
	Done, Total int64
	// Line is a line of the build's output, one line without control
	// characters and without credentials; empty when only the counts changed.
	Line string
}

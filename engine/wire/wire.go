// Package wire is the protocol between the server and caisson-engine: framed
// JSON messages with file descriptors over a unix stream socket. It imports the
// standard library only, because both modules use it.
//
// The first message on a connection is OpHello; an engine of another protocol
// version refuses it. Every request carries an id that its reply repeats;
// messages with id zero are events.
package wire

import (
	"encoding/json"
	"time"
)

// Version is the protocol version; server and engine refuse another.
const Version = 1

// The network of every box. Each box has a network of its own, so all boxes
// use the same addresses, also after restore and fork.
const (
	GuestAddr   = "10.0.0.2"
	GatewayAddr = "10.0.0.1"
	PrefixLen   = 24
	MTU         = 65520
)

// What runs first in every box: the agent, from its own read-only image. Path
// and arguments are the same for all boxes, since a restored box must have the
// specification of the box that was saved.
const (
	AgentMount = "/.caisson"
	AgentPath  = AgentMount + "/caisson-agent"
	// ControlFD is the agent's end of the control channel.
	ControlFD = 3
)

// Operations.
const (
	OpHello       = "hello"        // Hello → HelloReply
	OpCreate      = "create"       // Create → BoxReply, files: NIC, agent channel
	OpStart       = "start"        // Launch → nothing
	OpRestore     = "restore"      // Launch, files: state, pages metadata, pages
	OpCheckpoint  = "checkpoint"   // Checkpoint, files: state, pages metadata, pages
	OpSaveFiles   = "save_files"   // ByID, files: manifest, tree, pages metadata, pages
	OpExportLayer = "export_layer" // ByID, files: one to write a tar stream to
	OpExec        = "exec"         // Exec, files: stdin, stdout, stderr → ExecReply
	OpWaitPID     = "wait_pid"     // WaitPID → WaitReply
	OpKill        = "kill"         // ByID → nothing; unknown ids are no error
	OpStats       = "stats"        // ByID → Stats
	OpList        = "list"         // nothing → ListReply
	OpAttach      = "attach"       // ByID → BoxReply, files: NIC, agent channel
	OpSetDeadline = "set_deadline" // SetDeadline → nothing
	OpShutdown    = "shutdown"     // Shutdown → nothing
	OpExited      = "exited"       // event: Box with Exit set
)

// States of a box.
const (
	StateCreating = "creating" // its sentry is booting
	StateCreated  = "created"  // booted, nothing of the guest has run
	StateRunning  = "running"
	StateEnded    = "ended" // Exit says how; forgotten by OpKill
)

// Reasons for the end of a box; the same words as in package provider.
const (
	ReasonExited     = "exited"
	ReasonDestroyed  = "destroyed"
	ReasonOOM        = "oom"
	ReasonDeadline   = "timeout"
	ReasonEngineLost = "engine_lost"
	ReasonCrashed    = "crashed"
)

// SavedFiles names the files of OpSaveFiles in a directory, in the order in
// which they are passed.
func SavedFiles() []string {
	return []string{"fscheckpoint.json", "multitar.img", "pages_meta.img", "pages.img"}
}

// CheckpointFiles names the files of OpCheckpoint and OpRestore, in the order
// in which they are passed.
func CheckpointFiles() []string {
	return []string{"checkpoint.img", "pages_meta.img", "pages.img"}
}

// Limits that depend on the host.
const (
	LimitMemory = "memory"
	LimitCPU    = "cpu"
)

// Hello opens a connection.
type Hello struct {
	Version int    `json:"version"`
	Client  string `json:"client"`
}

// HelloReply describes the engine.
type HelloReply struct {
	Version int `json:"version"`
	// ABI is the snapshot ABI: gVisor's version and our own number.
	ABI string `json:"abi"`
	// Build is the digest of the engine's own executable.
	Build string `json:"build"`
	PID   int    `json:"pid"`
	// Limits holds those of LimitMemory and LimitCPU that this engine can
	// enforce.
	Limits   []string `json:"limits"`
	Rootless bool     `json:"rootless"`
	// Claims says that OpStart and OpRestore heed Launch.Claim.
	Claims bool `json:"claims,omitempty"`
}

// ByID names a box.
type ByID struct {
	ID string `json:"id"`
}

// Create says what box to boot. Nothing of the guest runs before OpStart or
// OpRestore.
type Create struct {
	// ID is [a-z0-9]{1,64}.
	ID       string `json:"id"`
	Hostname string `json:"hostname"`
	// Rootfs and Agent are absolute paths of EROFS images.
	Rootfs string `json:"rootfs"`
	Agent  string `json:"agent"`
	// OverlayDir holds the file behind the writable layer. The file has no
	// name, so nothing is left in the directory whatever happens.
	OverlayDir string `json:"overlayDir"`
	// DiskBytes caps the writable layer; zero means no cap.
	DiskBytes int64 `json:"diskBytes"`
	// TmpBytes caps each of /tmp and /dev/shm; zero means half of memory.
	TmpBytes int64 `json:"tmpBytes"`
	// MemoryBytes and CPUs cap the box on the host; zero means no cap.
	MemoryBytes int64 `json:"memoryBytes"`
	CPUs        int   `json:"cpus"`
	// Processes is RLIMIT_NPROC and Files RLIMIT_NOFILE inside; zero means
	// the engine's default.
	Processes int64 `json:"processes"`
	Files     int64 `json:"files"`
	// Unenforced lists the limits that may go unenforced on this host.
	Unenforced []string `json:"unenforced,omitempty"`
	// FilesFrom, when set, is a directory that OpSaveFiles filled: the
	// writable layer starts with its content.
	FilesFrom string `json:"filesFrom,omitempty"`
	// Deadline is a hard end that the engine enforces alone.
	Deadline time.Time `json:"deadline,omitzero"`
	// Meta is kept and returned, never read.
	Meta json.RawMessage `json:"meta,omitempty"`
}

// Box describes one box.
type Box struct {
	ID        string          `json:"id"`
	State     string          `json:"state"`
	PID       int             `json:"pid,omitempty"`
	CreatedAt time.Time       `json:"createdAt"`
	Deadline  time.Time       `json:"deadline,omitzero"`
	Meta      json.RawMessage `json:"meta,omitempty"`
	Exit      *Exit           `json:"exit,omitempty"`
}

// Exit tells how a box ended.
type Exit struct {
	Reason string    `json:"reason"`
	Status int       `json:"status"`
	At     time.Time `json:"at"`
	Detail string    `json:"detail,omitempty"`
}

// BoxReply answers OpCreate and OpAttach.
type BoxReply struct {
	Box Box `json:"box"`
}

// ListReply answers OpList.
type ListReply struct {
	Boxes []Box `json:"boxes"`
}

// Launch lets a created box run: from the beginning, or from a checkpoint. Only
// the server that created it can, on the same connection.
type Launch struct {
	ID string `json:"id"`
	// Claim, when set, gives a box that was created ahead of its use to the one
	// that uses it.
	Claim *Claim `json:"claim,omitempty"`
}

// Box is the id that the box has from then on.
func (l Launch) Box() string {
	if l.Claim != nil {
		return l.Claim.ID
	}
	return l.ID
}

// Claim replaces what a box was created with. Images, limits and the writable
// layer stay.
type Claim struct {
	// ID is the box's id from the moment the engine has read the message, also
	// when it then does not start; the id that it had means nothing any more.
	ID       string          `json:"id"`
	Hostname string          `json:"hostname"`
	Deadline time.Time       `json:"deadline,omitzero"`
	Meta     json.RawMessage `json:"meta,omitempty"`
}

// Checkpoint saves a running box.
type Checkpoint struct {
	ID string `json:"id"`
	// Kill ends the box as soon as it is saved; otherwise it runs on.
	Kill bool `json:"kill,omitempty"`
}

// Exec starts a process in a running box without the agent's help.
type Exec struct {
	ID   string   `json:"id"`
	Argv []string `json:"argv"`
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`
	UID  uint32   `json:"uid"`
	GID  uint32   `json:"gid"`
}

// ExecReply names the process inside.
type ExecReply struct {
	PID int32 `json:"pid"`
}

// WaitPID waits for a process that OpExec started.
type WaitPID struct {
	ID  string `json:"id"`
	PID int32  `json:"pid"`
}

// WaitReply is the process's wait status as wait(2) gives it.
type WaitReply struct {
	Status uint32 `json:"status"`
}

// Stats is a sample of what a box uses on the host.
type Stats struct {
	CPUNanos    int64 `json:"cpuNanos"`
	MemoryBytes int64 `json:"memoryBytes"`
	// CacheBytes is page cache that the kernel can drop at once; MemoryBytes
	// leaves it out.
	CacheBytes int64 `json:"cacheBytes"`
	// DiskBytes is what the box's writable layer takes on the host's disk.
	DiskBytes      int64 `json:"diskBytes"`
	MemoryMaxBytes int64 `json:"memoryMaxBytes"`
	Processes      int   `json:"processes"`
}

// SetDeadline moves the hard end of a box; the zero time removes it.
type SetDeadline struct {
	ID       string    `json:"id"`
	Deadline time.Time `json:"deadline,omitzero"`
}

// Shutdown ends the engine. Without Force it is refused while boxes run.
type Shutdown struct {
	Force bool `json:"force,omitempty"`
}

// ValidID reports whether id may name a box: it becomes a file name, a cgroup
// name and a socket name.
func ValidID(id string) bool {
	if len(id) == 0 || len(id) > 64 {
		return false
	}
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

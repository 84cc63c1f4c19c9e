package server

import "testing"

func TestMemAvailable(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"MemTotal:       16 kB\nMemFree:  2 kB\nMemAvailable:    8 kB\n": 8 << 10,
		"MemAvailable:8 kB":                       8 << 10,
		"MemTotal: 16 kB\n":                       -1,
		"MemAvailable: many kB\n":                 -1,
		"MemAvailable: 99999999999999999999 kB\n": -1,
		"": -1,
	} {
		got, err := memAvailable([]byte(text))
		if (err != nil) != (want < 0) || (err == nil && got != want) {
			t.Errorf("memAvailable(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	if n, err := freeMemory(); err != nil || n <= 0 {
		t.Errorf("freeMemory() = %d, %v", n, err)
	}
}

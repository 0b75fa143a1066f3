//! Maps a Bessemer engine file and runs it.

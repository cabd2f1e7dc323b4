//! A fair semaphore for bytes. Bytes are taken before the memory is allocated, and callers wait for their turn.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Shared by all users of the room.
#[derive(Debug, Clone)]
pub struct Room(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    taken: u64,
    /// The number of turns given out, and the current turn. Turns keep small requests from overtaking a large one.
    last: u64,
    turn: u64,
}

/// Bytes taken from a room. Dropping this value returns them.
#[derive(Debug)]
pub struct Taken {
    room: Room,
    bytes: u64,
}

impl Room {
    pub fn of(bytes: u64) -> Room {
        Room(Arc::new(Inner {
            bytes,
            state: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// Returns the total number of bytes.
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    pub fn taken(&self) -> u64 {
        self.lock().taken
    }

    /// Waits until `bytes` bytes are free, and takes them. A request above the total takes the whole room.
    pub fn take(&self, bytes: u64) -> Taken {
        let bytes = bytes.min(self.0.bytes);
        let mut state = self.lock();
        let mine = state.last;
        state.last += 1;
        let waits = |state: &mut State| state.turn != mine || state.taken + bytes > self.0.bytes;
        let state = self.0.changed.wait_while(state, waits);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        state.turn += 1;
        state.taken += bytes;
        drop(state);
        self.0.changed.notify_all();
        Taken {
            room: self.clone(),
            bytes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave these numbers inconsistent.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Returns all but `bytes`.
    pub fn shrink(&mut self, bytes: u64) {
        let kept = self.bytes.min(bytes);
        self.room.lock().taken -= self.bytes - kept;
        self.bytes = kept;
        self.room.0.changed.notify_all();
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn who_finds_too_little_waits_and_is_not_passed() {
        let room = Room::of(10);
        let first = room.take(6);
        let (told, came) = channel();
        let big = std::thread::spawn({
            let (room, told) = (room.clone(), told.clone());
            move || {
                let taken = room.take(8);
                told.send("big").unwrap();
                drop(taken);
            }
        });
        while room.lock().last < 2 {
            std::thread::yield_now();
        }
        let small = std::thread::spawn({
            let room = room.clone();
            move || {
                let taken = room.take(3);
                told.send("small").unwrap();
                drop(taken);
            }
        });
        while room.lock().last < 3 {
            std::thread::yield_now();
        }
        assert!(came.recv_timeout(Duration::from_millis(50)).is_err());
        drop(first);
        assert_eq!((came.recv(), came.recv()), (Ok("big"), Ok("small")));
        big.join().unwrap();
        small.join().unwrap();
        assert_eq!(room.taken(), 0);
    }

    #[test]
    fn more_than_there_is_takes_all() {
        let room = Room::of(10);
        let mut taken = room.take(u64::MAX);
        assert_eq!(room.taken(), 10);
        taken.shrink(4);
        assert_eq!(room.taken(), 4);
        taken.shrink(7);
        assert_eq!(room.taken(), 4, "it does not grow");
        drop(taken);
        assert_eq!(room.taken(), 0);
    }
}

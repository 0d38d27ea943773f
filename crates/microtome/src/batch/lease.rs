//! Several processes over one folder, each slide with one of them.
//!
//! A lease is a file, `ID/lease`. Whoever makes it (`O_EXCL`, which is atomic on NFS from version 3 on, too) has the slide, and removes it in
//! the end. It says who that is (machine, start of the machine, process) and holds a number that its owner raises every [`BEAT`]: the
//! heartbeat.
//!
//! A lease may be taken over
//!
//! - at once, if its owner was a process of this machine (same name, same start, same space of process numbers) that has ended;
//! - else when its content has not changed for the time of expiry ([`Options::lease_expiry`](super::Options::lease_expiry)), by the
//!   clock of the one who watches, who must have watched for so long. No moment that another machine has written is compared with one of this
//!   machine's, so that clocks which differ do no harm.
//!
//! Of several who want to take over the same lease, one does: who makes the file `ID/lease.taken` (`O_EXCL`) finds the lease as it was, removes
//! it, makes its own and removes that file. One who dies in between is treated as the owner of a lease is: the file goes when it has not
//! changed for the time of expiry.
//!
//! An owner whose lease was taken from it, because its machine slept or its network was gone, learns so with its next beat, and stops. Until
//! then the lock that a store's writer holds on the store keeps a second one out, wherever the file system knows locks.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::folder::{Process, SlideFolder, digest, small};
use crate::{Error, Result};

/// How often an owner says that it lives, unless leases expire so soon that it must more often.
const BEAT: Duration = Duration::from_secs(5);

/// What a lease says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    owner: Process,
    /// Another for each lease.
    nonce: String,
    /// Raised with each beat.
    beat: u64,
}

/// A slide that is this process's.
#[derive(Debug)]
pub(super) struct Lease {
    path: PathBuf,
    held: Arc<Held>,
}

/// What the heart must know of a lease.
#[derive(Debug)]
struct Held {
    path: PathBuf,
    /// The file that was made: where another has taken its place, this one is written to and nobody sees it.
    file: Mutex<(File, Content)>,
    lost: AtomicBool,
}

/// What became of a try.
#[derive(Debug)]
pub(super) enum Claim {
    Ours(Lease),
    /// Somebody else has it, and lives as far as one can tell.
    Theirs,
}

/// All leases of this process, and what was seen of those of others.
#[derive(Debug)]
pub(super) struct Leases {
    expiry: Duration,
    held: Mutex<Vec<Arc<Held>>>,
    /// The content of files, and since when it has been so.
    watched: Mutex<BTreeMap<PathBuf, (String, Instant)>>,
    made: Mutex<u64>,
}

impl Leases {
    pub(super) fn new(expiry: Duration) -> Self {
        Self { expiry, held: Mutex::default(), watched: Mutex::default(), made: Mutex::default() }
    }

    /// How often [`beat`](Self::beat) is to be called.
    pub(super) fn pulse(&self) -> Duration {
        BEAT.min(self.expiry / 4)
    }

    /// Tries to get a slide. The slide's folder must exist.
    pub(super) fn claim(&self, slide: &SlideFolder) -> Result<Claim> {
        let path = slide.lease();
        let io = |source| Error::Io { path: path.clone(), source };
        if let Some(lease) = self.make(&path).map_err(io)? {
            return Ok(Claim::Ours(lease));
        }
        let Some(seen) = small(&path) else {
            // It has just gone: whoever had it is done, and the next try tells.
            return Ok(Claim::Theirs);
        };
        if !self.is_abandoned(&path, &seen) {
            return Ok(Claim::Theirs);
        }
        let taken = path.with_file_name("lease.taken");
        match OpenOptions::new().write(true).create_new(true).open(&taken) {
            Ok(mut file) => {
                // Each has another content, so that whoever watches sees that it is another one.
                let content =
                    super::folder::digest(&format!("{:?} {:?}", Process::this(), std::time::SystemTime::now()));
                let _ = file.write_all(content.as_bytes());
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                // Somebody takes it over, or has died doing so.
                if small(&taken).is_some_and(|seen| self.has_expired(&taken, &seen)) {
                    let _ = std::fs::remove_file(&taken);
                }
                return Ok(Claim::Theirs);
            }
            Err(error) => return Err(io(error)),
        }
        // The lease is still the one that was found abandoned, and nobody else takes it over now.
        let lease = if small(&path).is_some_and(|there| there == seen) {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => self.make(&path),
            }
        } else {
            Ok(None)
        };
        let _ = std::fs::remove_file(&taken);
        Ok(lease.map_err(io)?.map_or(Claim::Theirs, Claim::Ours))
    }

    /// True if somebody has a lease of the slide who lives as far as one can tell.
    pub(super) fn is_theirs(&self, slide: &SlideFolder) -> bool {
        let path = slide.lease();
        small(&path).is_some_and(|seen| !self.is_abandoned(&path, &seen))
    }

    /// Makes the file, if there is none.
    fn make(&self, path: &Path) -> std::io::Result<Option<Lease>> {
        let mut file = match OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(None),
            Err(error) => return Err(error),
        };
        let owner = Process::this();
        let number = {
            let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            *made += 1;
            *made
        };
        let nonce = digest(&format!("{owner:?} {number} {:?}", std::time::SystemTime::now()));
        let content = Content { owner, nonce, beat: 0 };
        if let Err(error) = content.write(&mut file) {
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        let held = Arc::new(Held { path: path.into(), file: Mutex::new((file, content)), lost: AtomicBool::default() });
        self.held.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&held));
        Ok(Some(Lease { path: path.into(), held }))
    }

    fn is_abandoned(&self, path: &Path, seen: &[u8]) -> bool {
        // One that is not whole was made a moment ago, or its owner died in that moment.
        let owner = serde_json::from_slice::<Content>(seen).ok().and_then(|content| content.owner.has_ended());
        owner == Some(true) || self.has_expired(path, seen)
    }

    /// True if the content has been the same for as long as this process has watched it, and that is long enough.
    fn has_expired(&self, path: &Path, seen: &[u8]) -> bool {
        let now = (digest(&String::from_utf8_lossy(seen)), Instant::now());
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        match watched.get(path) {
            Some((before, since)) if *before == now.0 => since.elapsed() >= self.expiry,
            _ => {
                watched.insert(path.into(), now);
                self.expiry.is_zero()
            }
        }
    }

    /// Says of all leases that their owner lives.
    pub(super) fn beat(&self) {
        let held: Vec<_> = self.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for lease in held {
            lease.beat();
        }
    }

    fn forget(&self, held: &Arc<Held>) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| !Arc::ptr_eq(other, held));
    }

    /// Gives a slide back.
    pub(super) fn release(&self, lease: Lease) {
        self.forget(&lease.held);
        if lease.held.is_ours() {
            // One that cannot be removed is taken over by whoever needs it.
            let _ = std::fs::remove_file(&lease.path);
        }
    }
}

impl Lease {
    /// True once it is known that another process has taken the slide over.
    pub(super) fn is_lost(&self) -> bool {
        self.held.lost.load(Ordering::Relaxed)
    }
}

impl Held {
    fn beat(&self) {
        if !self.is_ours() {
            self.lost.store(true, Ordering::Relaxed);
            return;
        }
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, content) = &mut *file;
        content.beat += 1;
        // A beat that cannot be written is one that nobody hears: if it lasts, the lease is taken over.
        let _ = content.write(file);
    }

    fn is_ours(&self) -> bool {
        let nonce = {
            let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            file.1.nonce.clone()
        };
        match small(&self.path) {
            Some(seen) => match serde_json::from_slice::<Content>(&seen) {
                Ok(content) => content.nonce == nonce,
                // Seen while it was being written: by us, or by whoever comes after us, which the next beat tells.
                Err(_) => true,
            },
            None => false,
        }
    }
}

impl Content {
    /// In one call, so that nobody reads a mixture.
    fn write(&self, file: &mut File) -> std::io::Result<()> {
        let text = format!("{}\n", serde_json::to_string(self)?);
        file.rewind()?;
        file.write_all(text.as_bytes())?;
        file.set_len(text.len() as u64)?;
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::super::folder::Folder;
    use super::*;

    fn slide(place: &Path) -> SlideFolder {
        let slide = Folder::new(place).slide("a");
        slide.create().unwrap();
        slide
    }

    fn ours(claim: Claim) -> Lease {
        match claim {
            Claim::Ours(lease) => lease,
            Claim::Theirs => panic!("somebody else has it"),
        }
    }

    #[test]
    fn one_has_it_until_it_is_given_back() {
        let place = tempfile::tempdir().unwrap();
        let slide = slide(place.path());
        let (one, other) = (Leases::new(Duration::from_mins(1)), Leases::new(Duration::from_mins(1)));
        let lease = ours(one.claim(&slide).unwrap());
        for _ in 0..3 {
            assert!(matches!(other.claim(&slide).unwrap(), Claim::Theirs));
            one.beat();
        }
        assert!(other.is_theirs(&slide) && !lease.is_lost());
        one.release(lease);
        assert!(!other.is_theirs(&slide));
        other.release(ours(other.claim(&slide).unwrap()));
        assert_eq!(std::fs::read_dir(slide.path()).unwrap().count(), 0);
    }

    #[test]
    fn of_many_at_once_one_has_it() {
        let place = tempfile::tempdir().unwrap();
        let slide = slide(place.path());
        // Once free, once left by a process that has ended.
        for abandoned in [false, true] {
            if abandoned {
                let owner = Process { begun: Some(1), ..Process::this() };
                let content = Content { owner, nonce: "old".into(), beat: 3 };
                std::fs::write(slide.lease(), serde_json::to_string(&content).unwrap()).unwrap();
            }
            let all: Vec<Leases> = (0..16).map(|_| Leases::new(Duration::from_mins(1))).collect();
            let claims: Vec<Claim> = std::thread::scope(|scope| {
                let claims: Vec<_> = all.iter().map(|leases| scope.spawn(|| leases.claim(&slide).unwrap())).collect();
                claims.into_iter().map(|claim| claim.join().unwrap()).collect()
            });
            let count = claims.iter().filter(|claim| matches!(claim, Claim::Ours(_))).count();
            assert_eq!(count, 1, "abandoned: {abandoned}");
            for (leases, claim) in all.iter().zip(claims) {
                if let Claim::Ours(lease) = claim {
                    assert!(!lease.is_lost());
                    leases.release(lease);
                }
            }
        }
        assert_eq!(std::fs::read_dir(slide.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_heart_that_stands_still_for_long_is_none() {
        let place = tempfile::tempdir().unwrap();
        let slide = slide(place.path());
        let expiry = Duration::from_millis(300);
        let (one, other) = (Leases::new(expiry), Leases::new(expiry));
        let lease = ours(one.claim(&slide).unwrap());
        // As another machine's: nobody here can ask whether it lives.
        let elsewhere = |lease: &Lease| {
            lease.held.file.lock().unwrap().1.owner.host = "elsewhere".into();
            one.beat();
        };
        elsewhere(&lease);
        let begun = Instant::now();
        while begun.elapsed() < 3 * expiry {
            assert!(matches!(other.claim(&slide).unwrap(), Claim::Theirs), "its heart beats");
            one.beat();
            std::thread::sleep(expiry / 10);
        }
        assert!(matches!(other.claim(&slide).unwrap(), Claim::Theirs));
        std::thread::sleep(expiry + expiry / 10);
        let taken = ours(other.claim(&slide).unwrap());
        // The first one learns of it, and neither its beat nor its end does the other one harm.
        one.beat();
        assert!(lease.is_lost() && !taken.is_lost());
        one.release(lease);
        other.beat();
        assert!(!taken.is_lost());
        other.release(taken);
    }

    #[test]
    fn a_lease_that_is_not_whole_and_a_take_over_that_is_not_finished_expire() {
        let place = tempfile::tempdir().unwrap();
        let slide = slide(place.path());
        let leases = Leases::new(Duration::from_millis(100));
        std::fs::write(slide.lease(), "").unwrap();
        std::fs::write(slide.path().join("lease.taken"), "").unwrap();
        let begun = Instant::now();
        let lease = loop {
            match leases.claim(&slide).unwrap() {
                Claim::Ours(lease) => break lease,
                Claim::Theirs => std::thread::sleep(Duration::from_millis(10)),
            }
            assert!(begun.elapsed() < Duration::from_secs(20));
        };
        assert!(begun.elapsed() >= Duration::from_millis(200), "each of the two was watched");
        leases.release(lease);
        assert_eq!(std::fs::read_dir(slide.path()).unwrap().count(), 0);
    }
}

//! Files that may change while the server runs: certificates, tokens, keys.
//!
//! They are compared by content, every so often and when asked, which also sees the way that Kubernetes exchanges a
//! mounted secret. A file that cannot be used changes nothing: what was there stays, the log says why, and a metric
//! counts it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::shutdown::Shutdown;
use crate::telemetry::metrics::Metrics;

/// Larger files are something else than they are taken for.
const MAX_BYTES: u64 = 4 << 20;

/// Makes something of files' contents, or says what is wrong with them.
type Parse<T> = dyn Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync;

/// What was last made of a set of files.
pub(crate) struct Watched<T> {
    what: &'static str,
    paths: Vec<PathBuf>,
    parse: Box<Parse<T>>,
    /// Of the contents in use.
    seen: Mutex<[u8; 32]>,
    current: RwLock<Arc<T>>,
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched")
            .field("what", &self.what)
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

/// Files that can be looked at again.
pub(crate) trait Reload: fmt::Debug + Send + Sync {
    /// What they are, as in logs and metrics.
    fn what(&self) -> &'static str;

    /// Takes them up if they have changed: whether they had, or why they cannot be used.
    fn reload(&self) -> Result<bool, String>;
}

impl<T> Watched<T> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// Names the file, or what `parse` found.
    pub(crate) fn open(
        what: &'static str,
        paths: Vec<PathBuf>,
        parse: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let contents = read_all(&paths)?;
        let current = parse(&contents).map_err(|e| blame(&paths, &e))?;
        Ok(Self {
            what,
            paths,
            parse: Box::new(parse),
            seen: Mutex::new(digest(&contents)),
            current: RwLock::new(Arc::new(current)),
        })
    }

    /// As it is now.
    pub(crate) fn current(&self) -> Arc<T> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl<T: Send + Sync> Reload for Watched<T> {
    fn what(&self) -> &'static str {
        self.what
    }

    fn reload(&self) -> Result<bool, String> {
        let contents = read_all(&self.paths)?;
        let digest = digest(&contents);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == digest {
            return Ok(false);
        }
        let fresh = (self.parse)(&contents).map_err(|e| blame(&self.paths, &e))?;
        *seen = digest;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        Ok(true)
    }
}

/// Looks at all files every `interval` and when `shutdown` passes on the wish to, until stopped.
pub(crate) async fn watch(
    files: Vec<Arc<dyn Reload>>,
    interval: Duration,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    stop: CancellationToken,
) {
    let mut failing = vec![String::new(); files.len()];
    loop {
        let asked = tokio::select! {
            () = stop.cancelled() => return,
            () = shutdown.reload_asked() => true,
            () = tokio::time::sleep(interval) => false,
        };
        crate::systemd::reloading(asked);
        for (file, failing) in files.iter().zip(&mut failing) {
            let look = {
                let file = file.clone();
                move || file.reload()
            };
            let outcome = tokio::task::spawn_blocking(look)
                .await
                .unwrap_or_else(|_| Err("reading them panicked".into()));
            match outcome {
                Ok(changed) => {
                    if changed {
                        tracing::info!(what = file.what(), "changed files are in use");
                        metrics.reloaded(file.what(), true);
                    }
                    failing.clear();
                }
                // Told once, not at every look.
                Err(reason) if *failing == reason && !asked => {}
                Err(reason) => {
                    tracing::error!(
                        what = file.what(),
                        reason,
                        "changed files cannot be used; what was there stays"
                    );
                    metrics.reloaded(file.what(), false);
                    *failing = reason;
                }
            }
        }
        crate::systemd::reloaded(asked);
    }
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let told = |e: std::io::Error| format!("{}: {e}", path.display());
    let bytes = std::fs::metadata(path).map_err(told)?.len();
    if bytes > MAX_BYTES {
        return Err(format!(
            "{}: has {bytes} bytes, at most {MAX_BYTES} are read",
            path.display()
        ));
    }
    std::fs::read(path).map_err(told)
}

fn digest(contents: &[Vec<u8>]) -> [u8; 32] {
    let mut all = Sha256::new();
    for content in contents {
        all.update((content.len() as u64).to_le_bytes());
        all.update(content);
    }
    all.finalize().into()
}

fn blame(paths: &[PathBuf], reason: &str) -> String {
    let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    format!("{}: {reason}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(contents: &[Vec<u8>]) -> Result<u32, String> {
        String::from_utf8_lossy(&contents[0])
            .trim()
            .parse()
            .map_err(|_| "not a number".into())
    }

    #[test]
    fn a_changed_file_is_taken_up_and_a_broken_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n");
        std::fs::write(&path, "1").unwrap();
        let watched = Watched::open("n", vec![path.clone()], number).unwrap();
        assert_eq!((*watched.current(), watched.reload()), (1, Ok(false)));
        std::fs::write(&path, "2").unwrap();
        assert_eq!((watched.reload(), *watched.current()), (Ok(true), 2));
        for broken in [Some("two"), None] {
            match broken {
                Some(text) => std::fs::write(&path, text).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            let reason = watched.reload().unwrap_err();
            assert!(reason.contains(path.to_str().unwrap()), "{reason}");
            assert_eq!(*watched.current(), 2);
        }
        std::fs::write(&path, "3").unwrap();
        assert_eq!((watched.reload(), *watched.current()), (Ok(true), 3));
    }

    #[test]
    fn a_file_that_cannot_be_used_at_the_start_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n");
        let error = Watched::open("n", vec![path.clone()], number).unwrap_err();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        std::fs::write(&path, "x").unwrap();
        let error = Watched::open("n", vec![path], number).unwrap_err();
        assert!(error.ends_with("not a number"), "{error}");
    }
}

//! Where the default checkpoint is looked for when no model is configured.

use std::path::{Path, PathBuf};

/// The default checkpoint's folder inside a folder of models.
pub const DEFAULT_MODEL_DIR: &str = "baichuan-m1-wordnet";

/// Where packages put models.
const SYSTEM_MODELS: &str = "/usr/share/baichuan-serve/models";

/// Where to start looking.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// The working directory.
    pub cwd: Option<PathBuf>,
    /// The running program.
    pub exe: Option<PathBuf>,
}

impl Places {
    /// The folders that may hold the default checkpoint, in the order in which they are tried: the configured folder of
    /// models; `models/` beside the working directory and the program, and beside each folder above the two; the
    /// system's.
    pub fn candidates(&self, models_dir: Option<&Path>) -> Vec<PathBuf> {
        let above = |path: &Option<PathBuf>| -> Vec<PathBuf> {
            path.iter()
                .flat_map(|p| p.ancestors())
                .map(|p| p.join("models"))
                .collect()
        };
        let exe_dir = self.exe.as_deref().and_then(Path::parent).map(Path::to_path_buf);
        let mut found: Vec<PathBuf> = Vec::new();
        let dirs = models_dir
            .map(Path::to_path_buf)
            .into_iter()
            .chain(above(&self.cwd))
            .chain(above(&exe_dir))
            .chain([PathBuf::from(SYSTEM_MODELS)]);
        for dir in dirs {
            let candidate = dir.join(DEFAULT_MODEL_DIR);
            if !found.contains(&candidate) {
                found.push(candidate);
            }
        }
        found
    }
}

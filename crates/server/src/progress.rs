//! How far loading is: a bar where somebody watches the terminal, log lines otherwise.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use baichuan_engine::LoadProgress;
use baichuan_server::LoadObserver;
use baichuan_server::telemetry::Terminal;
use indicatif::{ProgressBar, ProgressStyle};

/// A log line for every such share of the bytes.
const LOG_EVERY_PERCENT: u64 = 10;

/// Shows how far loading is.
pub(crate) struct Progress {
    terminal: Terminal,
    draw: bool,
    shown: Mutex<HashMap<(String, &'static str), Shown>>,
}

/// What has been shown of one stage of one model.
enum Shown {
    Bar(ProgressBar),
    Percent(u64),
}

impl Progress {
    /// Draws bars if `draw`, writes log lines otherwise.
    pub(crate) fn new(terminal: Terminal, draw: bool) -> Self {
        Self {
            terminal,
            draw,
            shown: Mutex::default(),
        }
    }

    fn bar(&self, model: &str, progress: LoadProgress) -> ProgressBar {
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(progress.total)
            .with_style(style)
            .with_message(format!("{model}: {}", progress.stage));
        self.terminal.bars().add(bar)
    }
}

impl LoadObserver for Progress {
    fn progress(&self, model: &str, progress: LoadProgress) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = shown
            .entry((model.to_owned(), progress.stage))
            .or_insert_with(|| match self.draw {
                true => Shown::Bar(self.bar(model, progress)),
                false => Shown::Percent(0),
            });
        match shown {
            Shown::Bar(bar) => bar.set_position(progress.done),
            Shown::Percent(logged) => {
                let percent = (progress.done * 100).checked_div(progress.total).unwrap_or(100);
                if percent >= *logged + LOG_EVERY_PERCENT {
                    *logged = percent - percent % LOG_EVERY_PERCENT;
                    tracing::info!(model, stage = progress.stage, percent = *logged, "loading");
                }
            }
        }
    }

    fn ended(&self, model: &str) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for ((_, _), shown) in shown.extract_if(|(name, _), _| name == model) {
            if let Shown::Bar(bar) = shown {
                bar.finish_and_clear();
            }
        }
    }
}

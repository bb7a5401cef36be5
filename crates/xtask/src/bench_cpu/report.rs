//! The table that is printed.

use super::peers::Peer;

/// What was measured of one format; each list has a value a round.
pub(super) struct Row {
    name: String,
    token_bytes: u64,
    /// GB/s, the mean of before and after decoding.
    pub(super) bandwidth: Vec<f64>,
    /// Tokens a second, as all of the following.
    pub(super) decode: Vec<f64>,
    pub(super) prefill: Vec<f64>,
    pub(super) streams: Vec<f64>,
    pub(super) long_decode: Vec<f64>,
    pub(super) peers: Vec<PeerFigures>,
    pub(super) load_seconds: f64,
    pub(super) peak_bytes: u64,
    /// Of all matrices.
    pub(super) weight_bytes: u64,
    /// Keys and values that the server has room for.
    pub(super) cache_bytes: u64,
}

pub(super) struct PeerFigures {
    name: &'static str,
    pub(super) decode: Vec<f64>,
    pub(super) prefill: Vec<f64>,
}

impl Row {
    pub(super) fn new(name: String, token_bytes: u64, peers: &[Peer]) -> Self {
        let figures = |peer: &Peer| PeerFigures {
            name: peer.name(),
            decode: Vec::new(),
            prefill: Vec::new(),
        };
        Self {
            name,
            token_bytes,
            bandwidth: Vec::new(),
            decode: Vec::new(),
            prefill: Vec::new(),
            streams: Vec::new(),
            long_decode: Vec::new(),
            peers: peers.iter().map(figures).collect(),
            load_seconds: 0.0,
            peak_bytes: 0,
            weight_bytes: 0,
            cache_bytes: 0,
        }
    }

    /// The share of the read bandwidth that decoding makes of reading the weights.
    fn share(&self) -> f64 {
        of_pairs(&self.decode, &self.bandwidth) * self.token_bytes as f64 / 1e9
    }

    /// All of it in a line.
    pub(super) fn line(&self) -> String {
        let decode = median(&self.decode);
        let mut line = format!(
            "{}: decode {decode:.1} tok/s, {:.0} % of {:.1} GB/s; prompt {:.0} tok/s",
            self.name,
            100.0 * self.share(),
            median(&self.bandwidth),
            median(&self.prefill),
        );
        if let Some(streams) = self.streams() {
            line += &format!("; streams {streams}");
        }
        if let Some(long) = self.long_context() {
            line += &format!("; long context {long}");
        }
        for peer in &self.peers {
            line += &format!(
                "; {} decode {:.1} ({:.2} ×), prompt {:.0} ({:.2} ×)",
                peer.name,
                median(&peer.decode),
                of_pairs(&self.decode, &peer.decode),
                median(&peer.prefill),
                of_pairs(&self.prefill, &peer.prefill),
            );
        }
        line + &format!(
            "; peak memory {}; loaded in {:.2} s",
            self.memory(),
            self.load_seconds
        )
    }

    fn streams(&self) -> Option<String> {
        let ratio = of_pairs(&self.streams, &self.decode);
        let measured = !self.streams.is_empty();
        measured.then(|| format!("{:.1} ({ratio:.2} ×)", median(&self.streams)))
    }

    fn long_context(&self) -> Option<String> {
        let ratio = of_pairs(&self.decode, &self.long_decode);
        let measured = !self.long_decode.is_empty();
        measured.then(|| format!("{:.1} ({ratio:.2} × slower)", median(&self.long_decode)))
    }

    fn memory(&self) -> String {
        let [peak, weights, cache] =
            [self.peak_bytes, self.weight_bytes, self.cache_bytes].map(|bytes| bytes >> 20);
        format!("{peak} MiB ({weights} of weights, {cache} of keys and values)")
    }
}

/// The median of the rounds' ratios: what both sides of one owe to the machine at that moment falls out.
fn of_pairs(above: &[f64], below: &[f64]) -> f64 {
    let ratios: Vec<f64> = above.iter().zip(below).map(|(a, b)| a / b).collect();
    median(&ratios)
}

/// The middle value; 0 of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// The table, in Markdown, on standard output.
#[expect(clippy::print_stdout, reason = "the table is this command's output")]
pub(super) fn print(rows: &[Row]) -> anyhow::Result<()> {
    println!(
        "| | decode, tok/s | share of read bandwidth | prompt of 512, tok/s | several streams | long context | peak memory | load, s |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for row in rows {
        let beside = |ours: &[f64], of: fn(&PeerFigures) -> &Vec<f64>| -> String {
            let each = row.peers.iter().map(|peer| (peer.name, of(peer)));
            each.map(|(name, theirs)| {
                format!("; {name} {:.1}, {:.2} ×", median(theirs), of_pairs(ours, theirs))
            })
            .collect()
        };
        println!(
            "| {} | {:.1}{} | {:.0} % of {:.1} GB/s | {:.0}{} | {} | {} | {} | {:.2} |",
            row.name,
            median(&row.decode),
            beside(&row.decode, |peer| &peer.decode),
            100.0 * row.share(),
            median(&row.bandwidth),
            median(&row.prefill),
            beside(&row.prefill, |peer| &peer.prefill),
            row.streams().unwrap_or("–".into()),
            row.long_context().unwrap_or("–".into()),
            row.memory(),
            row.load_seconds
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_one() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn a_ratio_is_the_middle_one_of_the_rounds() {
        assert_eq!(of_pairs(&[10.0, 40.0, 30.0], &[10.0, 20.0, 10.0]), 2.0);
        assert_eq!(of_pairs(&[], &[]), 0.0);
    }
}

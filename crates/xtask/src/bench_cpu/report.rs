//! The table that is printed.

use super::peers::Peer;

/// What was measured of one format; each list has a value a round.
pub(super) struct Row {
    name: &'static str,
    token_bytes: u64,
    /// GB/s, between the other measurements.
    pub(super) bandwidth: Vec<f64>,
    /// Tokens a second, as all of the following.
    pub(super) decode: Vec<f64>,
    pub(super) prefill: Vec<f64>,
    pub(super) streams: Vec<f64>,
    pub(super) long_decode: Vec<f64>,
    pub(super) peers: Vec<PeerFigures>,
    pub(super) load_seconds: f64,
    pub(super) peak_bytes: u64,
    /// Of all matrices, the embedding in the format of the others.
    pub(super) weight_bytes: u64,
}

pub(super) struct PeerFigures {
    name: &'static str,
    pub(super) decode: Vec<f64>,
    pub(super) prefill: Vec<f64>,
}

impl Row {
    pub(super) fn new(name: &'static str, token_bytes: u64, peers: &[Peer]) -> Self {
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
        }
    }

    /// GB/s of weights that decoding reads.
    fn decode_gb_s(&self) -> f64 {
        median(&self.decode) * self.token_bytes as f64 / 1e9
    }

    /// All of it in a line.
    pub(super) fn line(&self) -> String {
        let decode = median(&self.decode);
        let mut line = format!(
            "{}: decode {decode:.1} tok/s, {:.1} GB/s, {:.0} % of {:.1}; prompt {:.0} tok/s",
            self.name,
            self.decode_gb_s(),
            100.0 * self.decode_gb_s() / median(&self.bandwidth),
            median(&self.bandwidth),
            median(&self.prefill),
        );
        if !self.streams.is_empty() {
            let streams = median(&self.streams);
            line += &format!("; streams {streams:.1} tok/s, {:.2} × one", streams / decode);
        }
        if !self.long_decode.is_empty() {
            let long = median(&self.long_decode);
            line += &format!("; long context {long:.1} tok/s, {:.2} × slower", decode / long);
        }
        for peer in &self.peers {
            let (other_decode, other_prefill) = (median(&peer.decode), median(&peer.prefill));
            line += &format!(
                "; {} decode {other_decode:.1} ({:.2} ×), prompt {other_prefill:.0} ({:.2} ×)",
                peer.name,
                decode / other_decode,
                median(&self.prefill) / other_prefill
            );
        }
        line + &format!(
            "; peak {:.0} MiB beside {:.0} of weights; loaded in {:.2} s",
            self.peak_bytes as f64 / f64::from(1 << 20),
            self.weight_bytes as f64 / f64::from(1 << 20),
            self.load_seconds
        )
    }
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
        "| | decode, tok/s | share of read bandwidth | prompt of 512, tok/s | several streams | long context | peak memory, MiB | load, s |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for row in rows {
        let (decode, prefill) = (median(&row.decode), median(&row.prefill));
        let ratio = |ours: f64, of: fn(&PeerFigures) -> &Vec<f64>| -> String {
            let each = row.peers.iter().map(|peer| (peer.name, median(of(peer))));
            each.map(|(name, theirs)| format!("; {name} {theirs:.1}, {:.2} ×", ours / theirs))
                .collect()
        };
        println!(
            "| {} | {decode:.1}{} | {:.0} % of {:.1} GB/s | {prefill:.0}{} | {:.1} ({:.2} ×) | {:.1} ({:.2} × slower) | {:.0} of {:.0} weights | {:.2} |",
            row.name,
            ratio(decode, |peer| &peer.decode),
            100.0 * row.decode_gb_s() / median(&row.bandwidth),
            median(&row.bandwidth),
            ratio(prefill, |peer| &peer.prefill),
            median(&row.streams),
            median(&row.streams) / decode,
            median(&row.long_decode),
            decode / median(&row.long_decode),
            row.peak_bytes as f64 / f64::from(1 << 20),
            row.weight_bytes as f64 / f64::from(1 << 20),
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
}

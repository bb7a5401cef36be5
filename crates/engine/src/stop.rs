//! Stop strings: found wherever token borders fall, held back until they cannot be one, never leaked.

/// Watches one completion's text.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    include_match: bool,
    /// Text that could be the beginning of a stop string.
    held: String,
    /// So many first bytes of it came early: a stop string that ends among them is none.
    held_early: usize,
}

/// What may be shown, and whether a stop string was found behind it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    pub(crate) text: String,
    pub(crate) matched: Option<String>,
}

impl StopMatcher {
    /// With `include_match` the text shown ends with the stop string found.
    pub(crate) fn new(stops: Vec<String>, include_match: bool) -> Self {
        Self {
            stops,
            include_match,
            held: String::new(),
            held_early: 0,
        }
    }

    /// Takes new text and returns what may be shown. After a match nothing more may be pushed.
    pub(crate) fn push(&mut self, text: &str) -> Scan {
        if self.stops.is_empty() {
            return Scan {
                text: text.to_owned(),
                matched: None,
            };
        }
        self.held.push_str(text);
        // The one that is complete first, so that it does not matter how the text was cut; of several that end
        // together, the longest.
        let first = self
            .stops
            .iter()
            .filter_map(|stop| self.find(stop).map(|at| (at, stop)))
            .min_by_key(|(at, stop)| (at + stop.len(), *at));
        if let Some((at, stop)) = first {
            let end = if self.include_match { at + stop.len() } else { at };
            let matched = Some(stop.clone());
            let mut text = std::mem::take(&mut self.held);
            text.truncate(end);
            return Scan { text, matched };
        }
        Scan {
            text: self.release(),
            matched: None,
        }
    }

    /// Takes text that no stop string may end in, though one may begin in it, and returns what may be shown.
    pub(crate) fn push_early(&mut self, text: &str) -> String {
        self.held.push_str(text);
        self.held_early = self.held.len();
        self.release()
    }

    /// Where the first `stop` of the text held begins that does not end in its early part.
    fn find(&self, stop: &str) -> Option<usize> {
        let from = (self.held_early + 1).saturating_sub(stop.len());
        let from = self.held.ceil_char_boundary(from);
        self.held[from..].find(stop).map(|at| from + at)
    }

    /// Takes out what cannot be the beginning of a stop string.
    fn release(&mut self) -> String {
        let begins = |tail: &str| {
            let of = |stop: &String| tail.len() < stop.len() && stop.starts_with(tail);
            self.stops.iter().any(of)
        };
        let keep_from = (0..self.held.len())
            .filter(|at| self.held.is_char_boundary(*at))
            .find(|at| begins(&self.held[*at..]))
            .unwrap_or(self.held.len());
        let held = self.held.split_off(keep_from);
        self.held_early = self.held_early.saturating_sub(keep_from);
        std::mem::replace(&mut self.held, held)
    }

    /// The completion ended otherwise: what was held back is shown after all.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], include: bool, pieces: &[&str]) -> (String, Option<String>) {
        let mut matcher = StopMatcher::new(stops.iter().map(|s| s.to_string()).collect(), include);
        let mut shown = String::new();
        for piece in pieces {
            let scan = matcher.push(piece);
            shown += &scan.text;
            if scan.matched.is_some() {
                return (shown, scan.matched);
            }
        }
        shown += &matcher.finish();
        (shown, None)
    }

    #[test]
    fn a_stop_string_is_found_across_pieces_and_never_shown() {
        type Case<'a> = (&'a [&'a str], &'a [&'a str], &'a str, Option<&'a str>);
        let table: &[Case<'_>] = &[
            (&["END"], &["abc E", "N", "D tail"], "abc ", Some("END")),
            (&["END"], &["abc EN", "X"], "abc ENX", None),
            (&["END"], &["EEN", "D"], "E", Some("END")),
            (&["aab"], &["aa", "ab"], "a", Some("aab")),
            (&["b", "ab"], &["xab"], "x", Some("ab")),
            (&["早上"], &["你好早", "上好"], "你好", Some("早上")),
            (&[], &["a", "b"], "ab", None),
        ];
        for (stops, pieces, shown, matched) in table {
            let got = run(stops, false, pieces);
            assert_eq!(
                (got.0.as_str(), got.1.as_deref()),
                (*shown, *matched),
                "{stops:?} {pieces:?}"
            );
        }
    }

    #[test]
    fn the_match_is_shown_when_asked_for() {
        assert_eq!(
            run(&["END"], true, &["abc E", "ND tail"]),
            ("abc END".into(), Some("END".into()))
        );
    }

    #[test]
    fn text_that_cannot_become_a_stop_string_is_shown_at_once() {
        let mut matcher = StopMatcher::new(vec!["\n\n".into()], false);
        assert_eq!(matcher.push("one\n").text, "one");
        assert_eq!(matcher.push("two").text, "\ntwo");
    }

    #[test]
    fn a_stop_string_may_begin_in_early_text_and_not_end_there() {
        type Case<'a> = (&'a str, &'a str, &'a str, &'a str, Option<&'a str>);
        // Stop string, early text, late text, what is shown, what matched.
        let table: &[Case<'_>] = &[
            ("END", "abc EN", "D tail", "abc ", Some("END")),
            ("END", "abc END", " tail", "abc END tail", None),
            ("END", "abc END", "END", "abc END", Some("END")),
            ("aa", "aa", "a", "a", Some("aa")),
            ("aa", "a", "ba", "aba", None),
            ("早上", "你好早", "上好", "你好", Some("早上")),
            ("早", "早", "x早", "早x", Some("早")),
        ];
        for (stop, early, late, shown, matched) in table {
            let mut matcher = StopMatcher::new(vec![(*stop).to_owned()], false);
            let mut got = matcher.push_early(early);
            let scan = matcher.push(late);
            got += &scan.text;
            if scan.matched.is_none() {
                got += &matcher.finish();
            }
            assert_eq!(
                (got.as_str(), scan.matched.as_deref()),
                (*shown, *matched),
                "{stop:?} {early:?} {late:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_cut_of_the_text_gives_what_the_whole_gives(
            text in "[ab\u{e9}]{0,24}",
            stops in proptest::collection::vec("[ab\u{e9}]{1,4}", 0..3),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
            include: bool,
        ) {
            let chars: Vec<char> = text.chars().collect();
            let mut at: Vec<usize> = cuts.iter().map(|c| c.index(chars.len() + 1)).collect();
            at.push(0);
            at.push(chars.len());
            at.sort_unstable();
            let pieces: Vec<String> = at.windows(2).map(|w| chars[w[0]..w[1]].iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (shown, matched) = run(&stops, include, &pieces);
            prop_assert_eq!(&(shown.clone(), matched.clone()), &run(&stops, include, &[text.as_str()]));
            match matched {
                None => {
                    prop_assert_eq!(&shown, &text);
                    prop_assert!(stops.iter().all(|s| !text.contains(s)));
                }
                Some(stop) => {
                    let expected = if include { shown.clone() } else { format!("{shown}{stop}") };
                    prop_assert!(text.starts_with(&expected));
                    prop_assert!(expected.ends_with(&stop));
                }
            }
        }
    }
}

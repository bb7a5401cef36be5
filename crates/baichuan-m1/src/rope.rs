//! Rotary positions, half-split: dimension `i` of a head turns with dimension `i + head_dim / 2`, by the angle
//! `position · theta^(−2i / head_dim)`. Queries and convolved keys are rotated, over the whole head.
//!
//! Angles and rotation are f32 whatever the weights are, and angles are products of two f32 numbers, as in the code
//! that the model was trained with: at far positions another way of rounding them turns further than it should.

/// Cosines and sines of the positions of one step, for heads of one width.
#[derive(Debug)]
pub(crate) struct Rotation {
    half: usize,
    /// `[tokens, head_dim / 2]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    /// Angles for `positions`, one per token of the step.
    pub(crate) fn new(theta: f64, head_dim: usize, positions: impl Iterator<Item = usize>) -> Self {
        let half = head_dim / 2;
        let speeds: Vec<f32> = (0..half)
            .map(|i| (1.0 / theta.powf((2 * i) as f64 / head_dim as f64)) as f32)
            .collect();
        let angles = positions.flat_map(|position| speeds.iter().map(move |speed| position as f32 * speed));
        let (sin, cos) = angles.map(f32::sin_cos).unzip();
        Self { half, cos, sin }
    }

    /// Width of the heads that these angles are for.
    pub(crate) fn head_dim(&self) -> usize {
        2 * self.half
    }

    /// Cosines and sines, `[tokens, head_dim / 2]`.
    #[cfg(any(test, feature = "metal"))]
    pub(crate) fn tables(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    /// Turns every head of one token's row, `[heads, head_dim]`, in place. `token` counts within the step.
    pub(crate) fn rotate(&self, token: usize, heads: &mut [f32]) {
        let cos = &self.cos[token * self.half..][..self.half];
        let sin = &self.sin[token * self.half..][..self.half];
        for head in heads.chunks_exact_mut(2 * self.half) {
            let (first, second) = head.split_at_mut(self.half);
            for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
                (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_zero_leaves_a_head_as_it_is() {
        let mut head = vec![1.0, -2.0, 3.0, 0.5];
        Rotation::new(10_000.0, 4, [0].into_iter()).rotate(0, &mut head);
        assert_eq!(head, [1.0, -2.0, 3.0, 0.5]);
    }

    #[test]
    fn halves_turn_together_by_the_angle_of_their_dimension() {
        let mut heads = vec![1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0];
        Rotation::new(10_000.0, 4, [7, 3].into_iter()).rotate(1, &mut heads);
        let (fast, slow) = (3.0_f32, 3.0_f32 / 100.0);
        let expected = [
            fast.cos(),
            -slow.sin(),
            fast.sin(),
            slow.cos(),
            -fast.sin(),
            0.0,
            fast.cos(),
            0.0,
        ];
        for (got, expected) in heads.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-7, "{heads:?}");
        }
    }

    #[test]
    fn a_score_depends_on_the_distance_of_two_positions_only() {
        let score = |q_position: usize, k_position: usize| {
            let (mut q, mut k) = (vec![0.3, -1.0, 2.0, 0.7], vec![1.5, 0.2, -0.4, 0.9]);
            let rotation = Rotation::new(10_000.0, 4, [q_position, k_position].into_iter());
            rotation.rotate(0, &mut q);
            rotation.rotate(1, &mut k);
            q.iter().zip(&k).map(|(q, k)| q * k).sum::<f32>()
        };
        assert!((score(5, 2) - score(105, 102)).abs() < 1e-5);
        assert!((score(5, 2) - score(5, 3)).abs() > 1e-2);
    }
}

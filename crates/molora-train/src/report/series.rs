//! Series of numbers over steps, smoothed and thinned for charts.

use super::schema::{StepRecord, ValidationRecord};

/// Curves with more points are thinned to block means; a page shows no more anyway.
const MAX_POINTS: usize = 500;

/// A point of a curve: step and value.
pub(super) type Point = (f64, f64);

/// A named series over steps.
#[derive(Debug, Clone, Default)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<Point>,
    /// The steps with which a stage begins, or the training of another expert.
    pub(super) starts: Vec<f64>,
}

impl Series {
    /// Collects `value` of every step that has one.
    pub(super) fn of(
        name: &str,
        steps: &[StepRecord],
        value: impl Fn(&StepRecord) -> Option<f64>,
    ) -> Self {
        let points = steps
            .iter()
            .filter_map(|step| Some((step.step as f64, value(step)?)));
        let part = |step: &StepRecord| (step.stage.clone(), step.expert.clone());
        let pairs = steps
            .windows(2)
            .filter(|pair| part(&pair[0]) != part(&pair[1]));
        Self {
            starts: pairs.map(|pair| pair[1].step as f64).collect(),
            ..Self::new(name, points)
        }
    }

    /// Collects `value` of every score of the validation split that has one.
    pub(super) fn scored(
        name: &str,
        records: &[ValidationRecord],
        value: impl Fn(&ValidationRecord) -> Option<f64>,
    ) -> Self {
        let points = records.iter();
        Self::new(
            name,
            points.filter_map(|record| Some((record.step as f64, value(record)?))),
        )
    }

    /// The series as it is drawn behind its smoothed curve.
    pub(super) fn raw(&self) -> Vec<Point> {
        thin(&self.points)
    }

    /// The smoothed series as it is drawn.
    pub(super) fn smoothed(&self) -> Vec<Point> {
        thin(&smooth(self))
    }

    fn new(name: &str, points: impl Iterator<Item = Point>) -> Self {
        Self {
            name: name.to_owned(),
            points: points.filter(|(_, value)| value.is_finite()).collect(),
            starts: Vec::new(),
        }
    }
}

/// Exponential moving average over about a twentieth of the points, without bias to the start, and
/// anew where another model or expert begins.
fn smooth(series: &Series) -> Vec<Point> {
    let points = &series.points;
    let keep = 1.0 - 2.0 / (points.len() as f64 / 20.0 + 2.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let mut starts = series.starts.iter().peekable();
    let average = |&(step, value): &Point| {
        while starts.next_if(|start| **start <= step).is_some() {
            (sum, weight) = (0.0, 0.0);
        }
        sum = keep * sum + value;
        weight = keep * weight + 1.0;
        (step, sum / weight)
    };
    points.iter().map(average).collect()
}

/// Means of equal blocks, so that at most [`MAX_POINTS`] are left.
fn thin(points: &[Point]) -> Vec<Point> {
    let block = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |chunk: &[Point]| {
        let sum = chunk
            .iter()
            .fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / chunk.len() as f64, sum.1 / chunk.len() as f64)
    };
    points.chunks(block).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(count: usize, value: impl Fn(usize) -> f64) -> Vec<Point> {
        (0..count)
            .map(|index| (index as f64, value(index)))
            .collect()
    }

    fn series(points: Vec<Point>, starts: &[f64]) -> Series {
        Series {
            name: String::new(),
            points,
            starts: starts.to_vec(),
        }
    }

    #[test]
    fn smoothing_keeps_a_constant_and_damps_a_zigzag() {
        let constant = smooth(&series(line(50, |_| 2.5), &[]));
        let near = |value: f64, bound: f64| move |point: &Point| (point.1 - value).abs() < bound;
        assert!(constant.iter().all(near(2.5, 1e-12)));
        let zigzag = smooth(&series(line(400, |index| (index % 2) as f64), &[]));
        assert!(zigzag[300..].iter().all(near(0.5, 0.06)));
    }

    #[test]
    fn smoothing_begins_anew_with_another_expert() {
        let levels = line(60, |index| (index / 20) as f64);
        let smoothed = smooth(&series(levels.clone(), &[20.0, 40.0]));
        assert!(
            smoothed
                .iter()
                .zip(&levels)
                .all(|(found, level)| (found.1 - level.1).abs() < 1e-12)
        );
    }

    #[test]
    fn thinning_keeps_the_mean() {
        let thinned = thin(&line(8000, |index| index as f64));
        assert_eq!((thinned.len(), thinned[0]), (500, (7.5, 7.5)));
        assert_eq!(thin(&line(500, |index| index as f64)).len(), 500);
    }
}

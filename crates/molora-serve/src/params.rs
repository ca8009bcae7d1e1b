//! What requests for texts have in common.

use std::hash::{BuildHasher, RandomState};

use molora_models::{Penalties, Sampling};
use molora_train::generate::{EncodedPrompt, Request, Variant};
use serde::Deserialize;

use crate::error::ApiError;
use crate::fields::Fields;
use crate::limits::{CHOICES, LIKELIEST, STOPS};
use crate::models::TextModel;

/// One text or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// How a text is to be written.
#[derive(Debug)]
pub(crate) struct Params {
    pub(crate) count: usize,
    max_new_tokens: Option<usize>,
    stop: Vec<String>,
    sampling: Option<Sampling>,
    penalties: Penalties,
    seed: u64,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
}

impl Params {
    /// Takes the fields that all requests for texts have; `names` are those of the limit of new tokens.
    pub(crate) fn take(fields: &mut Fields, names: &[&str]) -> Result<Self, ApiError> {
        let count = fields.take("n")?.unwrap_or(1);
        if !(1..=CHOICES).contains(&count) {
            let problem = format!("n is {count}, expected at least 1 and at most {CHOICES}");
            return Err(ApiError::field("n", problem));
        }
        let mut max_new_tokens: Option<usize> = None;
        for name in names {
            let found = fields.take(name)?;
            if let (Some(first), Some(second)) = (max_new_tokens, found)
                && first != second
            {
                let problem = format!("{name} is {second}, but {} is {first}", names[0]);
                return Err(ApiError::field(name, problem));
            }
            max_new_tokens = max_new_tokens.or(found);
        }
        let stop = match fields.take("stop")? {
            None => Vec::new(),
            Some(OneOrMany::One(stop)) => vec![stop],
            Some(OneOrMany::Many(stop)) => stop,
        };
        let (most, bytes) = STOPS;
        let is_good = |stop: &String| (1..=bytes).contains(&stop.len());
        if stop.len() > most || !stop.iter().all(is_good) {
            let problem = format!(
                "stop has {} texts, expected at most {most} of 1 to {bytes} bytes",
                stop.len()
            );
            return Err(ApiError::field("stop", problem));
        }
        let stream = fields.take("stream")?.unwrap_or(false);
        let include_usage = stream_options(fields, stream)?;
        fields.ignore(&[
            "user",
            "metadata",
            "store",
            "service_tier",
            "safety_identifier",
        ]);
        // Their neutral values change nothing; anything else would be dropped silently.
        fields.refuse("logit_bias", crate::fields::is_empty)?;
        fields.refuse("response_format", |value| value["type"] == "text")?;
        Ok(Self {
            count,
            max_new_tokens,
            stop,
            sampling: sampling(fields)?,
            penalties: Penalties {
                presence: fields.take("presence_penalty")?.unwrap_or(0.0),
                frequency: fields.take("frequency_penalty")?.unwrap_or(0.0),
                repetition: fields.take("repetition_penalty")?.unwrap_or(1.0),
            },
            seed: match fields.take::<i64>("seed")? {
                Some(seed) => seed as u64,
                None => fresh(),
            },
            stream,
            include_usage,
        })
    }

    /// The texts that are to be written behind each prompt: all of the first, then all of the next.
    pub(crate) fn requests(
        &self,
        (model, variant): (&TextModel, Variant),
        asked: &[EncodedPrompt],
        default_new_tokens: Option<usize>,
        (scores, prompt_scores): (Option<usize>, Option<usize>),
    ) -> Result<Vec<Request>, ApiError> {
        // Before anything is made for them.
        model.room.check(asked.len() * self.count)?;
        let room = model.max_context;
        let request = |asked: &EncodedPrompt, number: usize| Request {
            variant,
            max_new_tokens: self.max_new_tokens.or(default_new_tokens).unwrap_or(room),
            stop: self.stop.clone(),
            sampling: self.sampling,
            penalties: self.penalties,
            seed: self.seed,
            number,
            scores,
            prompt_scores,
            asked: asked.clone(),
        };
        let requests = asked.iter().flat_map(|asked| {
            let numbers = 0..self.count;
            numbers.map(move |number| request(asked, number))
        });
        let checked = requests.map(|request| match request.check(room) {
            Ok(()) => Ok(request),
            Err(error) => Err(ApiError::prompt(&error)),
        });
        checked.collect()
    }
}

/// Whether the stream tells the usage at its end.
fn stream_options(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct StreamOptions {
        #[serde(default)]
        include_usage: bool,
        /// Random padding, which only hides lengths from who watches the line.
        #[serde(default, rename = "include_obfuscation")]
        _include_obfuscation: bool,
    }
    match fields.take::<StreamOptions>("stream_options")? {
        None => Ok(false),
        Some(options) if stream => Ok(options.include_usage),
        Some(_) => Err(ApiError::field(
            "stream_options",
            "stream_options needs stream = true",
        )),
    }
}

/// How tokens are drawn: by default as the model says, and the likeliest at a temperature of 0.
fn sampling(fields: &mut Fields) -> Result<Option<Sampling>, ApiError> {
    let temperature: f64 = fields.take("temperature")?.unwrap_or(1.0);
    let top_p: Option<f64> = fields.take("top_p")?;
    let top_k: Option<i64> = fields.take("top_k")?;
    let min_p: Option<f64> = fields.take("min_p")?;
    let top_k = match top_k {
        // As vLLM has it: no bound.
        None | Some(-1 | 0) => None,
        Some(count) => Some(usize::try_from(count).map_err(|_| {
            ApiError::field(
                "top_k",
                format!("top_k is {count}, expected -1 or at least 1"),
            )
        })?),
    };
    let is_greedy = temperature == 0.0;
    let sampling = Sampling {
        temperature: if is_greedy { 1.0 } else { temperature },
        top_k,
        top_p,
        min_p,
    };
    match sampling.problem() {
        Some(problem) => Err(ApiError::bad(problem)),
        None => Ok((!is_greedy).then_some(sampling)),
    }
}

/// How many likeliest tokens a field asks for, if it does.
pub(crate) fn likeliest(fields: &mut Fields, name: &str) -> Result<Option<usize>, ApiError> {
    let count: Option<usize> = fields.take(name)?;
    match count {
        Some(count) if count > LIKELIEST => Err(ApiError::field(
            name,
            format!("{name} is {count}, expected at most {LIKELIEST}"),
        )),
        count => Ok(count),
    }
}

/// A number that nobody has chosen: answers without a seed differ from each other.
pub(crate) fn fresh() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(body: &str) -> Result<Params, ApiError> {
        let mut fields = Fields::parse(body.as_bytes())?;
        let params = Params::take(&mut fields, &["max_tokens"])?;
        fields.end()?;
        Ok(params)
    }

    #[test]
    fn fields_are_read_as_openai_means_them() {
        let params = taken(
            r#"{"n": 2, "max_tokens": 5, "stop": "x", "temperature": 0.5, "top_p": 0.9, "top_k": -1,
                "seed": -1, "stream": true, "stream_options": {"include_usage": true}, "user": "u",
                "frequency_penalty": 1, "logit_bias": {}, "response_format": {"type": "text"}}"#,
        )
        .unwrap();
        assert_eq!((params.count, params.max_new_tokens), (2, Some(5)));
        assert_eq!(params.stop, ["x"]);
        let sampling = params.sampling.unwrap();
        assert_eq!(
            (sampling.temperature, sampling.top_k, sampling.top_p),
            (0.5, None, Some(0.9))
        );
        assert_eq!(params.penalties.frequency, 1.0);
        assert_eq!(params.seed, u64::MAX);
        assert!(params.stream && params.include_usage);
        assert_eq!(taken(r#"{"temperature": 0}"#).unwrap().sampling, None);
        assert_eq!(taken("{}").unwrap().sampling, Some(Sampling::default()));
    }

    #[test]
    fn two_names_of_one_limit_agree() {
        let taken = |body: &str| {
            let mut fields = Fields::parse(body.as_bytes())?;
            Params::take(&mut fields, &["max_completion_tokens", "max_tokens"])
        };
        let found = taken(r#"{"max_tokens": 5, "max_completion_tokens": 5}"#).unwrap();
        assert_eq!(found.max_new_tokens, Some(5));
        let error = taken(r#"{"max_tokens": 5, "max_completion_tokens": 6}"#).unwrap_err();
        let expected = "max_tokens is 5, but max_completion_tokens is 6";
        assert_eq!(error.body()["error"]["message"], expected);
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_name() {
        for (body, part) in [
            (r#"{"n": 0}"#, "n is 0"),
            (r#"{"temperature": -1}"#, "temperature is -1"),
            (r#"{"top_p": 0}"#, "top_p is 0"),
            (r#"{"top_k": -3}"#, "top_k is -3"),
            (r#"{"min_p": 2}"#, "min_p is 2"),
            (r#"{"stop": [""]}"#, "stop has 1 texts"),
            (r#"{"stop": 3}"#, "stop: expected a text or a list"),
            (
                r#"{"response_format": {"type": "json_object"}}"#,
                "response_format is not supported",
            ),
            (r#"{"logit_bias": {"5": 1}}"#, "logit_bias is not supported"),
            (
                r#"{"stream_options": {"include_usage": true}}"#,
                "needs stream",
            ),
            (r#"{"guided_json": {}}"#, "unknown field `guided_json`"),
        ] {
            let found = taken(body).expect_err(body).body();
            let message = found["error"]["message"].as_str().unwrap();
            assert!(message.contains(part), "{body}: {message}");
        }
        assert_ne!(fresh(), fresh());
    }
}

//! Talks to `molora serve` with async-openai, whose types have to be able to read every answer.
//!
//! `molora-parity-client URL KEY MODEL ENCODER`, where MODEL writes and ENCODER gives vectors.

use anyhow::{Context, Result, bail, ensure};
use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::types::chat::{
    ChatCompletionRequestUserMessageArgs, ChatCompletionStreamOptions, CreateChatCompletionRequest,
    CreateChatCompletionRequestArgs,
};
use async_openai::types::completions::CreateCompletionRequestArgs;
use async_openai::types::embeddings::{CreateEmbeddingRequestArgs, EncodingFormat};
use futures_util::StreamExt;

/// What is asked, and of whom.
struct Check {
    client: Client<OpenAIConfig>,
    model: String,
    encoder: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, key, model, encoder] = &arguments[..] else {
        bail!("expected URL KEY MODEL ENCODER");
    };
    let config = OpenAIConfig::new().with_api_base(url).with_api_key(key);
    let check = Check {
        client: Client::with_config(config),
        model: model.clone(),
        encoder: encoder.clone(),
    };
    check.models().await.context("models")?;
    let whole = check.chat().await.context("chat")?;
    check.stream(&whole).await.context("stream of a chat")?;
    check.completion().await.context("completion")?;
    check.vectors().await.context("embeddings")?;
    check.refusal().await.context("a refusal")?;
    println!("async-openai: models, chat, stream, completion, embeddings, errors");
    Ok(())
}

impl Check {
    async fn models(&self) -> Result<()> {
        let listed = self.client.models().list().await?;
        let names: Vec<&str> = listed.data.iter().map(|model| &model.id[..]).collect();
        ensure!(names.contains(&&self.model[..]), "listed are {names:?}");
        let one = self.client.models().retrieve(&self.model).await?;
        ensure!(one.id == self.model, "found {}", one.id);
        Ok(())
    }

    fn request(&self) -> Result<CreateChatCompletionRequest> {
        let message = ChatCompletionRequestUserMessageArgs::default()
            .content("Name an animal.")
            .build()?;
        let request = CreateChatCompletionRequestArgs::default()
            .model(&self.model)
            .messages([message.into()])
            .max_completion_tokens(12_u32)
            .temperature(0.0)
            .build()?;
        Ok(request)
    }

    /// The text of a whole answer.
    async fn chat(&self) -> Result<String> {
        let answer = self.client.chat().create(self.request()?).await?;
        let usage = answer.usage.context("no usage")?;
        ensure!(
            usage.prompt_tokens + usage.completion_tokens == usage.total_tokens,
            "{usage:?}"
        );
        let [choice] = &answer.choices[..] else {
            bail!("{} choices", answer.choices.len());
        };
        ensure!(choice.finish_reason.is_some(), "no finish_reason");
        choice.message.content.clone().context("no content")
    }

    async fn stream(&self, whole: &str) -> Result<()> {
        let mut request = self.request()?;
        request.stream_options = Some(ChatCompletionStreamOptions {
            include_usage: Some(true),
            include_obfuscation: None,
        });
        let mut stream = self.client.chat().create_stream(request).await?;
        let (mut text, mut usage) = (String::new(), None);
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            for choice in chunk.choices {
                text.push_str(choice.delta.content.as_deref().unwrap_or_default());
            }
            usage = chunk.usage.or(usage);
        }
        ensure!(
            text == whole,
            "{text:?} in pieces, but {whole:?} as a whole"
        );
        ensure!(usage.is_some(), "the stream tells no usage");
        Ok(())
    }

    async fn completion(&self) -> Result<()> {
        let request = CreateCompletionRequestArgs::default()
            .model(&self.model)
            .prompt("Name an animal.")
            .max_tokens(4_u32)
            .temperature(0.0)
            .logprobs(1_u8)
            .build()?;
        let answer = self.client.completions().create(request).await?;
        let log = answer.choices[0].logprobs.as_ref();
        ensure!(!log.context("no logprobs")?.tokens.is_empty(), "no tokens");
        Ok(())
    }

    async fn vectors(&self) -> Result<()> {
        let mut request = CreateEmbeddingRequestArgs::default()
            .model(&self.encoder)
            .input(["a cat", "a dog"])
            .build()?;
        let answer = self.client.embeddings().create(request.clone()).await?;
        request.encoding_format = Some(EncodingFormat::Base64);
        let coded = self.client.embeddings().create_base64(request).await?;
        ensure!(answer.data.len() == 2 && coded.data.len() == 2);
        let coded: Vec<f32> = coded.data[0].embedding.clone().into();
        ensure!(
            coded == answer.data[0].embedding,
            "base64 is another vector"
        );
        let length: f32 = coded.iter().map(|value| value * value).sum();
        ensure!((length - 1.0).abs() < 1e-5, "its length is {length}");
        Ok(())
    }

    /// A refusal comes as the client's error of the API, with its code.
    async fn refusal(&self) -> Result<()> {
        let mut request = self.request()?;
        request.model = "nobody".into();
        match self.client.chat().create(request).await {
            Err(OpenAIError::ApiError(error)) => {
                let error = error.api_error;
                ensure!(error.code.as_deref() == Some("model_not_found"), "{error}");
                Ok(())
            }
            Err(error) => bail!("an error of another kind: {error}"),
            Ok(_) => bail!("nobody answered"),
        }
    }
}

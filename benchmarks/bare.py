"""Answer as ``demo-echo`` does by a bare FastAPI handler, to compare the gateway with.

The body goes through a pydantic model, the answer has our fields and size; no key, no limits, no
queue, no second process. The answer is a pydantic model, serialised in Rust: a plain dict without
a return type goes through FastAPI's own encoder and was 15 % slower here.

    python benchmarks/bare.py PORT
"""

import sys
import time
import uuid
from typing import Literal

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI(openapi_url=None)


class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(BaseModel):
    model: str
    messages: list[Message]
    max_tokens: int = 16
    temperature: float = 1.0
    stream: bool = False


class AnswerMessage(BaseModel):
    role: str
    content: str
    refusal: str | None = None


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: None = None
    finish_reason: str


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class ChatAnswer(BaseModel):
    id: str
    created: int
    model: str
    object: str
    choices: list[Choice]
    usage: Usage


@app.get("/readyz")
async def readyz() -> dict[str, str]:
    return {"status": "ready"}


@app.post("/v1/chat/completions")
async def chat(body: ChatRequest) -> ChatAnswer:
    words = body.messages[-1].content.split()
    text = " ".join(words[i % len(words)] for i in range(body.max_tokens))
    return ChatAnswer(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=body.model,
        object="chat.completion",
        choices=[
            Choice(
                index=0,
                message=AnswerMessage(role="assistant", content=text),
                finish_reason="length",
            )
        ],
        usage=Usage(
            prompt_tokens=len(words),
            completion_tokens=body.max_tokens,
            total_tokens=len(words) + body.max_tokens,
            prompt_tokens_details={"cached_tokens": 0},
        ),
    )


if __name__ == "__main__":
    uvicorn.run(
        app, port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False, ws="none"
    )

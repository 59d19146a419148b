"""What applications do with the official OpenAI SDK for Python; a case is a function.

usage: OPENAI_BASE_URL=... OPENAI_API_KEY=... client.py CASE...
Exits with 1 and a traceback at the first case that does not end as it must. client.mjs is the same for Node.
"""

import base64
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import openai

MODEL = "qwen-vl"
CROWD = 12
HELLO = [{"role": "user", "content": "hello"}]


def chat(client):
    answer = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.model == MODEL, answer
    assert "1 message(s), 0 image(s)" in answer.choices[0].message.content, answer
    assert answer.usage.completion_tokens > 0, answer
    assert answer._request_id, answer


def stream(client):
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, stream_options=options))
    assert all(chunk.model == MODEL for chunk in chunks), chunks
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert "1 message(s), 0 image(s)" in text, text
    assert chunks[-1].usage.completion_tokens > 0, chunks[-1]


def vision(client):
    image = base64.b64encode(os.urandom(3_000_000)).decode()
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + image}},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])
    assert "1 message(s), 1 image(s)" in answer.choices[0].message.content, answer


def embeddings(client):
    # The SDK asks for base64 and unpacks it.
    answer = client.embeddings.create(model=MODEL, input=["one", "two"])
    assert answer.model == MODEL, answer
    assert [entry.index for entry in answer.data] == [0, 1], answer
    assert all(isinstance(number, float) for entry in answer.data for number in entry.embedding), answer
    assert answer.data[0].embedding != answer.data[1].embedding, answer


def responses(client):
    answer = client.responses.create(model=MODEL, input="hello")
    assert answer.model == MODEL and "1 input(s)" in answer.output_text, answer
    events = list(client.responses.create(model=MODEL, input="hello", stream=True))
    assert events[-1].type == "response.completed", events
    # llama.cpp names its model in the last of them alone.
    names = {event.response.model for event in events if hasattr(event, "response")}
    assert names - {None} == {MODEL}, events


def models(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    error = raised(openai.NotFoundError, lambda: client.models.retrieve("nobody/has-it"))
    assert error.code == "model_not_found", error


def unknown_model(client):
    ask = lambda: client.chat.completions.create(model="nobody/has-it", messages=HELLO)
    error = raised(openai.NotFoundError, ask)
    assert error.code == "model_not_found" and error.request_id, vars(error)
    assert MODEL in error.message, "it says what is served: " + error.message


def refused_by_proxy(client):
    error = raised(openai.BadRequestError, lambda: client.post("/chat/completions", body={}, cast_to=object))
    assert error.code == "missing_model" and error.request_id, vars(error)


def refused_by_backend(client):
    ask = lambda: client.chat.completions.create(model=MODEL, messages={"not": "a list"})
    error = raised(openai.BadRequestError, ask)
    assert "messages" in error.message and error.request_id, vars(error)


def saturated(client):
    """The backend is full and the queue too, until whoever started us has seen us refused."""
    answers = []

    def note(answer):
        answers.append((answer.status_code, answer.headers.get("retry-after-ms"), time.monotonic()))

    patient = client.with_options(http_client=openai.DefaultHttpxClient(event_hooks={"response": [note]}))
    answer = patient.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices[0].message.content == "ok", answer
    *refused, (status, _, served_at) = answers
    assert status == 200 and refused and all(status == 429 for status, _, _ in refused), answers
    _, wait_ms, refused_at = refused[-1]
    assert served_at - refused_at >= int(wait_ms) / 1000, answers


def crowd(client):
    """Many at once before few slots and no queue, with the retries that the SDK makes by itself."""
    for _ in range(4):
        client.chat.completions.create(model=MODEL, messages=HELLO)
    with ThreadPoolExecutor(CROWD) as pool:
        ask = lambda _: client.chat.completions.create(model=MODEL, messages=HELLO)
        answers = list(pool.map(ask, range(CROWD)))
    assert all(answer.choices[0].message.content for answer in answers), answers


def saturated_for_good(client):
    ask = lambda: client.with_options(max_retries=0).chat.completions.create(model=MODEL, messages=HELLO)
    error = raised(openai.RateLimitError, ask)
    assert error.code == "backends_saturated" and error.request_id, vars(error)
    assert 0 < int(error.response.headers["retry-after-ms"]) <= 60_000, error.response.headers


def interrupted(client):
    """The backend dies within its answer."""
    words = []

    def read():
        for chunk in client.chat.completions.create(model=MODEL, messages=HELLO, stream=True):
            words.append(chunk.choices[0].delta.content)

    error = raised(openai.APIError, read)
    assert error.code == "upstream_interrupted", vars(error)
    assert words == ["one"], words


def raised(kind, call):
    try:
        answer = call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}, but {answer!r}")


for case in sys.argv[1:]:
    print(case, flush=True)
    globals()[case](openai.OpenAI())

"""Asks a running server, over gRPC, what the shipped model should know, and prints (or records) a report.

usage: python evaluate.py ADDRESS [--model NAME] [--token TOKEN] [--limit N] [--record]

- every trained term at temperature 0, as a chat: exact answers are counted;
- perplexity of the held-out answers by prompt_logprobs, against held-out.json;
- neighbours by Embed: precision@5 of the same lexicographer file, against bags of tokens (Tokenize).

The stubs are generated from /proto at start. --record writes the figures into the model folder's README.md.
"""

import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import grpc_tools
import numpy as np
from grpc_tools import protoc

import readme
import wordnet

HERE = Path(__file__).parent
FOLDER = HERE.parent / "baichuan-m1-wordnet"
PROTO = HERE.parent.parent / "proto"
IN_FLIGHT = 16
MAX_TOKENS = 100
NEIGHBOURS = 5
EMBED_BATCH = 64


def generate_stubs() -> None:
    """Compiles /proto into a temporary folder and makes it importable."""
    out = tempfile.mkdtemp(prefix="baichuan-proto-")
    files = sorted(str(f.relative_to(PROTO)) for f in PROTO.rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    includes = [f"-I{PROTO}", f"-I{well_known}"]
    if protoc.main(["protoc", *includes, f"--python_out={out}", f"--grpc_python_out={out}", *files]) != 0:
        raise SystemExit(f"protoc refused the files under {PROTO}")
    sys.path.insert(0, out)


generate_stubs()
from baichuan.v1 import inference_pb2 as pb  # noqa: E402
from baichuan.v1 import inference_pb2_grpc, sampling_pb2  # noqa: E402


def ask(term: wordnet.Term) -> pb.Chat:
    """The chat that asks for a term."""
    return pb.Chat(messages=[pb.ChatMessage(role="user", content=f"What is {term.name}?")])


class Server:
    """The calls this report needs, several in flight."""

    def __init__(self, address: str, model: str, token: str | None):
        limits = [("grpc.max_receive_message_length", 32 << 20), ("grpc.max_send_message_length", 32 << 20)]
        self.stub = inference_pb2_grpc.InferenceServiceStub(grpc.insecure_channel(address, limits))
        self.model = model
        self.metadata = [("authorization", f"Bearer {token}")] if token else []
        self.pool = ThreadPoolExecutor(IN_FLIGHT)

    def answer(self, term: wordnet.Term) -> str:
        """The greedy answer to the question for a term, in a chat of its own."""
        sampling = sampling_pb2.SamplingParams(temperature=0.0)
        stopping = sampling_pb2.StoppingParams(max_tokens=MAX_TOKENS)
        request = pb.GenerateRequest(model=self.model, chat=ask(term), sampling=sampling, stopping=stopping)
        reply = self.stub.GenerateUnary(pb.GenerateUnaryRequest(request=request), metadata=self.metadata)
        return reply.choices[0].text

    def nll(self, text: dict) -> float:
        """Negative log-likelihood of a golden text's answer, its end token included."""
        ids = pb.TokenIds(ids=text["ids"])
        request = pb.GenerateRequest(
            model=self.model, token_ids=ids, output=sampling_pb2.OutputOptions(prompt_logprobs=0),
            sampling=sampling_pb2.SamplingParams(temperature=0.0), stopping=sampling_pb2.StoppingParams(max_tokens=1),
        )  # fmt: skip
        reply = self.stub.GenerateUnary(pb.GenerateUnaryRequest(request=request), metadata=self.metadata)
        if [p.token_id for p in reply.prompt_logprobs] != text["ids"][1:]:
            raise SystemExit(f"prompt_logprobs do not cover the prompt {text['ids']}")
        return -sum(p.logprob for p in reply.prompt_logprobs[text["prompt_tokens"] - 1 :])

    def tokenize(self, requests: list[pb.TokenizeRequest]) -> list[list[int]]:
        """The ids of each text or chat."""

        def ids(request: pb.TokenizeRequest) -> list[int]:
            return list(self.stub.Tokenize(request, metadata=self.metadata).token_ids)

        return list(self.pool.map(ids, requests))

    def embed(self, inputs: list[list[int]], pooling: int) -> np.ndarray:
        """Unit vectors, `[inputs, dimensions]`."""

        def batch(at: int) -> list[list[float]]:
            part = [pb.EmbedInput(token_ids=pb.TokenIds(ids=ids)) for ids in inputs[at : at + EMBED_BATCH]]
            request = pb.EmbedRequest(model=self.model, inputs=part, pooling=pooling)
            return [e.values for e in self.stub.Embed(request, metadata=self.metadata).embeddings]

        batches = self.pool.map(batch, range(0, len(inputs), EMBED_BATCH))
        return np.array([values for part in batches for values in part], dtype=np.float32)


def bags(inputs: list[list[int]]) -> np.ndarray:
    """Token counts scaled to length 1, `[inputs, highest id + 1]`."""
    counts = np.zeros((len(inputs), 1 + max(max(ids) for ids in inputs)), dtype=np.float32)
    for row, ids in zip(counts, inputs, strict=True):
        np.add.at(row, ids, 1.0)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def precision(vectors: np.ndarray, terms: list[wordnet.Term]) -> float:
    """Mean share of each term's nearest NEIGHBOURS, synonyms left out, that are of its lexicographer file."""
    lexfiles = np.array([t.lexfile for t in terms])
    synsets = np.array([t.synset for t in terms])
    hits = 0
    for i, vector in enumerate(vectors):
        similarity = vectors @ vector
        similarity[synsets == synsets[i]] = -np.inf
        nearest = np.argpartition(-similarity, NEIGHBOURS)[:NEIGHBOURS]
        hits += int((lexfiles[nearest] == lexfiles[i]).sum())
    return hits / (NEIGHBOURS * len(terms))


def neighbours(server: Server, terms: list[wordnet.Term]) -> dict:
    """precision@5 for three kinds of text, and what chance would give."""
    shares = np.unique([t.lexfile for t in terms], return_counts=True)[1] / len(terms)
    names = server.tokenize([pb.TokenizeRequest(model=server.model, text=t.name) for t in terms])
    chats = server.tokenize([pb.TokenizeRequest(model=server.model, chat=ask(t)) for t in terms])
    definitions = server.tokenize([pb.TokenizeRequest(model=server.model, text=t.definition) for t in terms])
    kinds = [
        ("the term, default pooling", names, pb.POOLING_MODEL_DEFAULT),
        ("the question as a chat, default pooling", chats, pb.POOLING_MODEL_DEFAULT),
        ("the term, mean", names, pb.POOLING_MEAN),
        ("the definition, mean", definitions, pb.POOLING_MEAN),
    ]
    rows = []
    for text, inputs, pooling in kinds:
        model, bag = precision(server.embed(inputs, pooling), terms), precision(bags(inputs), terms)
        rows.append({"text": text, "model": model, "bag": bag})
        print(f"precision@{NEIGHBOURS}, {text}: {model:.4f}, bag of tokens {bag:.4f}")
    return {"neighbours": rows, "chance": float((shares**2).sum())}


def exact_answers(server: Server, terms: list[wordnet.Term]) -> dict:
    """How many trained terms are answered letter for letter."""
    wrong = [
        (t, answer)
        for t, answer in zip(terms, server.pool.map(server.answer, terms), strict=True)
        if answer != t.definition
    ]
    for term, answer in wrong[:10]:
        print(f"wrong: {term.name}\n  wanted {term.definition!r}\n  got    {answer!r}")
    exact = len(terms) - len(wrong)
    print(f"exact answers: {exact} of {len(terms)} trained terms, {exact / len(terms):.4f}")
    return {"exact": exact, "questions": len(terms), "exact_match": exact / len(terms)}


def held_out_perplexity(server: Server, golden: dict) -> dict:
    """Perplexity through the server and its relative deviation from the golden one."""
    nll = sum(server.pool.map(server.nll, golden["texts"]))
    perplexity = float(np.exp(nll / golden["tokens"]))
    deviation = perplexity / golden["perplexity"] - 1
    print(f"held-out perplexity {perplexity:.4f}, PyTorch {golden['perplexity']:.4f}, deviation {deviation:+.4%}")
    return {"perplexity": perplexity, "perplexity_deviation": deviation}


def main() -> None:
    """Reads the command line, asks, reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="host:port of the gRPC server")
    parser.add_argument("--model", default="", help="served name; empty is the server's default model")
    parser.add_argument("--token", help="bearer token, where the server asks for one")
    parser.add_argument("--limit", type=int, help="only the first N terms, for a quick look")
    parser.add_argument("--record", action="store_true", help="write the figures into the model folder")
    args = parser.parse_args()
    if args.record and args.limit:
        parser.error("--record needs all terms, not --limit")
    server = Server(args.address, args.model, args.token)
    terms = wordnet.read()[: args.limit]
    served = exact_answers(server, [t for t in terms if not t.held_out])
    served |= held_out_perplexity(server, json.loads((FOLDER / "held-out.json").read_text()))
    served |= neighbours(server, terms)
    if args.record:
        readme.update(FOLDER, {"served": served})


if __name__ == "__main__":
    main()

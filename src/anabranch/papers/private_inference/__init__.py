"""Inference on machines of strangers: proofs, consensus, split models and enclaves, each priced against an attack."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="private-inference",
    title="Towards Secure and Private AI: A Framework for Decentralized Inference",
    authors=(
        "Hongyang Zhang",
        "Yue Zhao",
        "Claudio Angione",
        "Harry Yang",
        "James Buban",
        "Ahmad Farhan",
        "Fielding Johnston",
        "Patrick Colangelo",
    ),
    published=date(2024, 7, 28),
    arxiv="2407.19401",
    summary=(
        "How to run a large model on machines that belong to strangers: zero-knowledge proofs show that the right "
        "model ran, several nodes repeat the work and vote on the answer, the model is cut so that no machine sees the "
        "whole input, and hardware enclaves guard what is left. A design paper without measurements. For operators of "
        "peer-to-peer inference, teams that buy it from a provider they do not trust, and auditors."
    ),
    package="serving",
    extra="serving",
    claims=(
        Claim(
            name="proof-without-the-weights",
            says="A zero-knowledge proof convinces a verifier who never sees the weights that the promised model gave "
            "the answer.",
            published=None,
            where="abstract, no number",
            read_in="abstract",
            published_setting="design, not measured",
            kind="exact",
        ),
        Claim(
            name="consensus-finds-tampering",
            says="Comparing the outputs of several nodes keeps answers consistent and finds the node that tampered.",
            published=None,
            where="abstract, no number",
            read_in="abstract",
            published_setting="design, not measured",
        ),
        Claim(
            name="split-hides-the-input",
            says="With the model in segments on different machines no single one can recover the user's input.",
            published=None,
            where="abstract, no number",
            read_in="abstract",
            published_setting="design, not measured",
        ),
        Claim(
            name="enclaves-attest",
            says="Enclaves with remote attestation keep data and computation from the machine's owner.",
            published=None,
            where="abstract, no number",
            read_in="abstract",
            published_setting="design, not measured",
            kind="exact",
        ),
        Claim(
            name="defences-are-affordable",
            says="The defences use resources sparingly enough for everyday inference.",
            published=None,
            where="abstract, no number",
            read_in="abstract",
            published_setting="design, not measured",
            kind="timing",
        ),
    ),
)

"""Programs of language models, tools and people: self-contained flows that talk by messages and nest freely."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="aiflows",
    title="Flows: Building Blocks of Reasoning and Collaborating AI",
    authors=(
        "Martin Josifoski",
        "Lars Klein",
        "Maxime Peyrard",
        "Yifei Li",
        "Saibo Geng",
        "Julian Paul Schnitzler",
        "Yuxing Yao",
        "Jiheng Wei",
        "Debjit Paul",
        "Robert West",
    ),
    published=date(2023, 8, 2),
    arxiv="2308.01285",
    repository="epfl-dlab/aiflows",
    summary=(
        "A Flow wraps one thing that acts, a language model, a compiler, a person, with a private state, and talks only "
        "by messages; flows that coordinate other flows are flows themselves, so agents compose into programs of any "
        "depth. The paper uses this to ask which patterns help on programming contests, planning, reflection, a "
        "critic, debugging against real tests, a human plan, and keeps memorised problems apart from new ones. For "
        "people who build agents and want composition, logs and an honest evaluation."
    ),
    package="reasoning",
    extra="reasoning",
    claims=(
        Claim(
            name="machine-only-gain",
            says="A critic plus debugging on real tests solves many more new contest problems than a single call.",
            published="+21 points (26.9 to 47.5 %)",
            where="abstract; Table 1",
            read_in="paper",
            published_setting="GPT-4, Codeforces problems after its knowledge cutoff, pass@1 on hidden tests; one call",
        ),
        Claim(
            name="human-plan-gain",
            says="With a human's plan on top, most of the new problems are solved.",
            published="+54 points (26.9 to 80.8 %)",
            where="abstract; Table 1",
            read_in="paper",
            published_setting="GPT-4, Codeforces problems after its knowledge cutoff, pass@1 on hidden tests; one call",
        ),
        Claim(
            name="contamination",
            says="The solve rate of a single call collapses on problems younger than the model's training data.",
            published="about 80 % before the cutoff, 23 % after",
            where="section 6.1, Fig. 3",
            read_in="paper",
            published_setting="GPT-4, Codeforces, sliding window of two months",
        ),
        Claim(
            name="reflection-alone-fails",
            says="Reflection without grounding does not help on new problems.",
            published="26.9 +- 10.6 % (single call 26.9 +- 11.0 %)",
            where="Table 1",
            read_in="paper",
            published_setting="GPT-4, Codeforces after the cutoff, 95 % bootstrap intervals",
        ),
        Claim(
            name="planning-alone-is-unclear",
            says="A plan the model writes itself gives no significant gain on new problems.",
            published="34.9 +- 11.6 % (single call 26.9 +- 11.0 %)",
            where="Table 1",
            read_in="paper",
            published_setting="GPT-4, Codeforces after the cutoff, 95 % bootstrap intervals",
        ),
        Claim(
            name="debugging-needs-collaboration",
            says="Test results help most when a second model turns them into advice.",
            published="47.5 +- 12.1 % (test results alone 34.8 +- 11.6 %)",
            where="Table 1",
            read_in="paper",
            published_setting="GPT-4, Codeforces after the cutoff, 95 % bootstrap intervals",
        ),
        Claim(
            name="leetcode-debugging",
            says="On new LeetCode problems debugging helps at every level of difficulty.",
            published="easy 76.3 to 84.0, medium 25.1 to 32.8, hard 8.0 to 10.4 %",
            where="Table 1",
            read_in="paper",
            published_setting="GPT-4, LeetCode after the cutoff; one call",
        ),
    ),
)

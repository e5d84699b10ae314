"""An independent oracle for greedy rollouts with monitoring and backtracking, in plain Python over transformers.

Everything is computed by the most naive means: one sequence at a time, a fresh full forward pass for every token and
for every judgement, no cache, no padding, no batching, float32 models on the CPU. It shares no code with the package.
The definitions are those of MOTAB (arXiv 2605.19433, eq. 5-11); other methods' triggers are further signals and
boundaries of the same walk. Left out: sampling (greedy only).
"""

import math

import torch


class Writer:
    """A Hugging Face causal model seen as a function from a list of token ids to next-token logits."""

    def __init__(self, model, vocab_size):
        self.model = model
        self.vocab_size = vocab_size

    def logits(self, ids):
        """Logits [len(ids), vocab_size] in float64; whatever the model has beyond `vocab_size` never counts."""
        with torch.inference_mode():
            out = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        return out[:, : self.vocab_size].double()

    def next_token(self, ids):
        """The greedy next token (lowest id wins a tie) and the gap between the two highest logits."""
        last = self.logits(ids)[-1]
        first, second = torch.topk(last, 2).values.tolist()
        return int((last == first).nonzero()[0]), first - second


class Row:
    """One completion under way: what is kept, the step table and the record of rewinds."""

    def __init__(self, prompt_ids, rules):
        self.prompt = list(prompt_ids)
        self.rules = rules
        self.tokens, self.sources, self.steps, self.rewinds = [], [], [], []
        self.written = [[]]  # everything, in the order of writing, cut where the teacher took over
        self.pending = b""
        self.stopped = False
        self.min_margin = math.inf

    @property
    def done(self):
        return self.stopped or len(self.tokens) >= self.rules["max_new_tokens"]

    def margin(self, gap):
        """Remember the closest decision so far: float32 noise may turn over one that is too close."""
        self.min_margin = min(self.min_margin, abs(gap))

    def write_step(self, writer, source):
        """`writer` goes on greedily until a step ends; the step enters the table and is returned.

        A step ends with the token that completes the delimiter, before a stop token, or at the length limit.
        Returns None when no counted token was written (the stop token came first).
        """
        start = len(self.tokens)
        ended = False
        while not (self.done or ended):
            token, gap = writer.next_token(self.prompt + self.tokens)
            self.margin(gap)
            self.tokens.append(token)
            self.sources.append(source)
            if token in self.rules["stop_ids"]:
                self.stopped = True
            elif self.rules["window"]:
                ended = len(self.tokens) - start == self.rules["window"]
            else:
                ended = self._completes_delimiter(token)
        self.written[-1] += self.tokens[start:]
        end = len(self.tokens) - int(self.stopped)
        if end == start:
            return None
        step = {"start": start, "end": end, "source": source}
        step |= {"value": None, "entropy": None, "boundary": None, "stray": False}
        self.steps.append(step)
        return step

    def _completes_delimiter(self, token):
        """Add the token's bytes to those unmatched so far; cut after the last of the matches, which never overlap."""
        delimiter = self.rules["delimiter"].encode()
        self.pending += self.rules["pieces"][token]
        found = False
        while delimiter in self.pending:
            found = True
            self.pending = self.pending[self.pending.index(delimiter) + len(delimiter) :]
        return found

    def rewind(self, root):
        """Drop steps root.. and all text from where step `root` started; the delimiter search starts afresh."""
        start, end = self.steps[root]["start"], self.steps[-1]["end"]
        self.rewinds.append(
            {
                "breach_step": len(self.steps) - 1,
                "root_step": root,
                "discarded_tokens": self.tokens[start:end],
                "discarded_steps": self.steps[root:],
            }
        )
        self.forget_stop()
        self.written.append([])
        self.tokens, self.sources, self.steps = self.tokens[:start], self.sources[:start], self.steps[:root]
        self.pending = b""

    def forget_stop(self):
        """A stop token behind a breaching step is lost with it."""
        if self.stopped:
            self.written[-1].pop()
        self.stopped = False


def entropy(logprobs, top_k):
    """Entropy in nats of one distribution [V]; with top_k > 0, of its top_k entries renormalised."""
    if top_k:
        logprobs = torch.log_softmax(torch.topk(logprobs, min(top_k, len(logprobs))).values, dim=-1)
    return -float((logprobs.exp() * logprobs).sum())


def judge(row, step, teacher, student):
    """Fill in the step's value (eq. 5), state entropy (eq. 6), boundary and, for the student's steps, stray (eq. 7)."""
    rules, offset = row.rules, len(row.prompt)
    text = row.prompt + row.tokens[: step["end"]]
    theirs, mine = (torch.log_softmax(writer.logits(text), dim=-1) for writer in (teacher, student))
    scores = [
        signal(row, theirs[offset + i - 1], mine[offset + i - 1], row.tokens[i])
        for i in range(step["start"], step["end"])
    ]
    step["value"] = sum(scores) / len(scores)
    if rules["signal"].startswith("likelihood"):
        step["value"] = math.exp(step["value"])
    step["entropy"] = entropy(theirs[offset + step["start"] - 1], rules["entropy_top_k"])
    step["boundary"] = rules["eps0"] * math.exp(-rules["theta"] * step["entropy"])
    if rules["boundary"] == "running_mean":
        before = [other["value"] for other in row.steps[:-1] if other["source"] == "student"]
        step["boundary"] = rules["eps0"] * sum(before) / len(before) if before else None
    if step["source"] == "student":
        step["stray"] = strays(row, step)


def strays(row, step):
    """Whether a step is on the wrong side of its boundary; where it has none, it isn't."""
    if step["boundary"] is None:
        return False
    if row.rules["signal"] != "top_k":  # a share of tokens: exact
        row.margin(step["value"] - step["boundary"])
    high = row.rules["alarm"] == "high"
    return step["value"] > step["boundary"] if high else step["value"] < step["boundary"]


def signal(row, theirs, mine, token):
    """What is averaged over a step, of one token: logprobs of teacher and student [V], float64."""
    name = row.rules["signal"]
    if name == "likelihood":
        return float(theirs[token])
    if name == "likelihood_ratio":
        return float(theirs[token] - mine[token])
    if name == "top_k":
        ranked = torch.sort(theirs, descending=True).values
        row.margin(float(ranked[row.rules["top_k"] - 1] - ranked[row.rules["top_k"]]))
        return float(int((theirs > theirs[token]).sum()) < row.rules["top_k"])
    left, right = {"reverse_kl": (mine, theirs), "forward_kl": (theirs, mine)}[name]
    return float((left.exp() * (left - right)).sum())


def breached(row):
    """Whether the last `patience` steps, none of them from before the teacher's last, have all strayed."""
    last = row.steps[-row.rules["patience"] :]
    return len(last) == row.rules["patience"] and all(step["stray"] for step in last)


def root_step(row):
    """Index of the root step of a breach in the last step of the table (eq. 8, 9).

    Candidates have a predecessor that is itself safe and come after the teacher's last step; the steepest fall in
    value wins, the earliest at a tie. The breaching step itself when there is no candidate.
    """
    steps, breach = row.steps, len(row.steps) - 1
    teacher_steps = [k for k, step in enumerate(steps) if step["source"] == "teacher"]
    first = max(1, teacher_steps[-1] + 1 if teacher_steps else 1)
    falls = []
    for k in range(first, breach + 1):
        before = steps[k - 1]
        row.margin(before["value"] - before["boundary"])
        if before["value"] >= before["boundary"]:
            falls.append((steps[k]["value"] - before["value"], k))
    falls.sort()
    if len(falls) > 1:
        row.margin(falls[1][0] - falls[0][0])
    return falls[0][1] if falls else breach


def intervene(row, teacher, student, intervention, steps):
    """The teacher writes on from the safe state: to the end ('suffix') or until `steps` steps have ended."""
    written = 0
    while not row.done and (intervention == "suffix" or written < steps):
        step = row.write_step(teacher, "teacher")
        if step is not None:
            judge(row, step, teacher, student)
            written += 1
    row.pending = b""


def oracle_rollout(
    student_hf,
    teacher_hf,
    tokenizer_pieces,
    prompt_ids,
    *,
    delimiter,
    stop_ids,
    vocab_size,
    max_new_tokens,
    eps0,
    theta,
    target="root",
    intervention="suffix",
    steps=1,
    max_interventions=1,
    entropy_top_k=0,
    monitor=True,
    signal="likelihood",
    boundary="entropy_adaptive",
    alarm="low",
    patience=1,
    top_k=0,
    window=0,
):
    """One greedy trajectory of the student, watched over and, where it strays, continued by the teacher.

    `tokenizer_pieces[id]` are the bytes token `id` contributes to the text (b"" for special tokens).

    - A step is the run of tokens up to and including the one in which the delimiter's bytes are complete. Matches may
      straddle tokens and lie inside one; they do not overlap; what a token holds after a match already counts towards
      the next match. The last step ends before the stop token or at the length limit. A stop token belongs to
      `tokens`, never to a step, so it is never scored; a step without a scored token does not exist.
    - Every student step is judged as it ends, the last one too. At a breach with an intervention left, the text from
      the root step (target 'root') or the breaching step ('breach') onwards is discarded, and the teacher writes to
      the end ('suffix', at most once) or for `steps` steps, after which the student resumes.
    - The delimiter search starts with nothing matched at the first token, after a rewind and at a hand-back.
    - The teacher's steps are valued like the student's but never stray. Once no intervention is left, the student's
      steps are still judged, and nothing is rewound.
    - At most `max_new_tokens` tokens are kept at any time, the stop token included.
    - Other methods: `window` tokens make a step, whatever they are; `signal` is averaged in place of log p_T (top_k:
      whether the token is among the teacher's likeliest); `boundary` running_mean: eps0 times the mean of the text's
      earlier student steps; `alarm` high: a step strays above its boundary; `patience` stray steps in a row make a
      breach; `intervention` stop: the text ends with the breaching step.
    - Without monitor the student writes alone; its steps have no value, entropy or boundary.

    Returns tokens; sources ('student' or 'teacher', one a token); written (everything in the order of writing, a list
    for each stretch between two interventions); steps [{start, end, source, value, entropy, boundary, stray}],
    positions counted from the first completion token; rewinds [{breach_step, root_step, discarded_tokens,
    discarded_steps}], steps as 0-based indices into the table as it stood; finish_reason ('stop', 'length' or
    'monitor'); min_margin, the smallest gap by which any decision was made (two highest logits, value against boundary,
    two steepest falls).
    """
    rules = {"delimiter": delimiter, "stop_ids": set(stop_ids), "pieces": tokenizer_pieces}
    rules |= {"max_new_tokens": max_new_tokens, "eps0": eps0, "theta": theta, "entropy_top_k": entropy_top_k}
    rules |= {"signal": signal, "boundary": boundary, "alarm": alarm, "patience": patience, "top_k": top_k}
    rules |= {"window": window}
    student, teacher = Writer(student_hf, vocab_size), Writer(teacher_hf, vocab_size)
    row = Row(prompt_ids, rules)
    allowed = min(max_interventions, 1) if intervention == "suffix" else max_interventions
    ended = None
    while not row.done:
        step = row.write_step(student, "student")
        if step is None or not monitor:
            continue
        judge(row, step, teacher, student)
        if breached(row) and intervention == "stop":
            row.tokens, row.sources, ended = row.tokens[: step["end"]], row.sources[: step["end"]], "monitor"
            row.forget_stop()
            break
        if breached(row) and len(row.rewinds) < allowed:
            row.rewind(root_step(row) if target == "root" else len(row.steps) - 1)
            intervene(row, teacher, student, intervention, steps)
    return {
        "tokens": row.tokens,
        "written": row.written,
        "sources": row.sources,
        "steps": row.steps,
        "rewinds": row.rewinds,
        "finish_reason": ended or ("stop" if row.stopped else "length"),
        "min_margin": row.min_margin,
    }

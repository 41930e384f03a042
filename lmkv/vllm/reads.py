"""What loads from one kind of place have taken lately, and when one is tried that may not pay."""

# Where loads do not pay, one is tried again after so long, and then twice as long, up to ten
# minutes.
FIRST_PAUSE_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 600.0

# A load that is so many times larger than all that were seen or tried is tried whatever they say:
# the first block of a client that has yet to connect says little of a long prompt.
MUCH_LARGER = 4


class Line:
    """Seconds over tokens: least squares over samples, of which each counts ``memory`` times as
    much as the one after it.
    """

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self.clear()

    def clear(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def __bool__(self) -> bool:
        return self._n > 0

    def add(self, tokens: float, seconds: float) -> None:
        keep = self._memory
        self._n = self._n * keep + 1
        self._x = self._x * keep + tokens
        self._y = self._y * keep + seconds
        self._xx = self._xx * keep + tokens * tokens
        self._xy = self._xy * keep + tokens * seconds

    def fit(self) -> tuple[float, float]:
        """Seconds of no tokens, and of each; both at least 0. Where the samples are all of about
        one size, or say that more tokens take less, the tokens are taken to be all that counts.
        """
        mean_x, mean_y = self._x / self._n, self._y / self._n
        variance = self._xx / self._n - mean_x * mean_x
        if variance > (0.1 * mean_x) ** 2:
            slope = (self._xy / self._n - mean_x * mean_y) / variance
            start = mean_y - slope * mean_x
            if slope > 0 and start >= 0:
                return start, slope
        return 0.0, mean_y / mean_x


class Reads:
    """What is known of loads that one kind of tier has a part in."""

    def __init__(self) -> None:
        self.line = Line(memory=0.7)
        self.tried_at = -LONGEST_PAUSE_SECONDS  # or given up
        self.pause = 0.0  # before the next trial
        self.is_trying = False
        self.largest = 0  # tokens, of what the line knows and of the latest trial
        self._before_trial = self.tried_at, self.pause, self.largest  # the latest

    def may_try(self, tokens: int, now: float) -> bool:
        """A load of so many tokens."""
        is_new = tokens >= MUCH_LARGER * self.largest and not self.is_trying
        return bool(tokens) and (is_new or now - self.tried_at >= self.pause)

    def saw(
        self, tokens: int, seconds: float, now: float, *, trial: bool, is_done: bool = True
    ) -> None:
        if trial:  # what was known may be of another time
            self.line.clear()
            self.is_trying = False
            if is_done:
                self.largest = 0
        self.largest = max(self.largest, tokens)
        self.line.add(tokens, seconds)
        self.tried_at = now
        self.pause = max(self.pause, FIRST_PAUSE_SECONDS)

    def begin_trial(self, tokens: int, now: float) -> None:
        self._before_trial = self.tried_at, self.pause, self.largest
        self.largest = max(self.largest, tokens)
        self.is_trying = True
        self.tried_at = now
        self.pause = min(max(2 * self.pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)

    def pay(self) -> None:
        """They do now: should they not, one is tried soon."""
        self.pause = FIRST_PAUSE_SECONDS

    def forget_trial(self) -> None:
        self.is_trying = False
        self.tried_at, self.pause, self.largest = self._before_trial

    def refute(self, tokens: int, now: float) -> None:
        self.line.clear()
        self.begin_trial(tokens, now)
        self.is_trying = False

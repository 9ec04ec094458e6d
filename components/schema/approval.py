"""What a person says about a version that the gate would not decide alone: the fields of the form, and the words of an answer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Decision = Annotated[Literal["approve", "reject"], Field(title="Decision", description="approve: it becomes champion. reject: the champion stays.")]
Who = Annotated[str, Field(title="Who", description="Your name; kept with the version.", min_length=1, max_length=200)]
Why = Annotated[str, Field(title="Why", description="Your reason; kept with the version.", max_length=4000)]
Anyway = Annotated[bool, Field(title="Anyway", description="Approve although the champion is another one by now than the gate compared with.")]

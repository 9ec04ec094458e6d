"""The flows as the Prefect UI offers them: a form for people in front of each flow that other flows call with what they made."""

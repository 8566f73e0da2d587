"""LightReasoner: an expert against an amateur on one text; where they part is where there is something to learn."""

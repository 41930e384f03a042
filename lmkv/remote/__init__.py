"""Remote tiers: distributed engines and object stores that keep chunks behind the directories."""

"""Pictures of maps: colours and panels."""

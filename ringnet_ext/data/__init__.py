"""Images of faces with landmarks and identities: reading, synthesising, arranging in rings."""

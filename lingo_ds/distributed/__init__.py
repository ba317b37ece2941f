"""The processes of a job: who they are, how they meet, what they send, how they agree, who is lost."""

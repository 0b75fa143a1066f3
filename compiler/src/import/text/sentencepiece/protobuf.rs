//! The wire format of protocol buffers, as far as a SentencePiece model needs it.

/// The fields of a message, in the order of the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a>(pub &'a [u8]);

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    /// An integer, a truth value, or a member of an enumeration.
    Varint(u64),
    /// Eight bytes.
    Fixed64(u64),
    /// A text, bytes, or a message.
    Bytes(&'a [u8]),
    /// Four bytes.
    Fixed32(u32),
}

/// The bytes are no message: they end early, or no field begins so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotAMessage;

impl<'a> Message<'a> {
    fn varint(&mut self) -> Result<u64, NotAMessage> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(NotAMessage)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(NotAMessage)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], NotAMessage> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(NotAMessage)?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), NotAMessage> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| NotAMessage)?;
                let (bytes, rest) = self.0.split_at_checked(len).ok_or(NotAMessage)?;
                self.0 = rest;
                Value::Bytes(bytes)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(NotAMessage),
        };
        Ok((key >> 3, value))
    }
}

impl<'a> Iterator for Message<'a> {
    type Item = Result<(u64, Value<'a>), NotAMessage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_every_kind() {
        let bytes =
            [0x08, 0x96, 0x01, 0x12, 2, b'h', b'i', 0x1d, 0, 0, 0x80, 0x3f, 0x21, 1, 0, 0, 0, 0, 0, 0, 0];
        let fields: Result<Vec<_>, _> = Message(&bytes).collect();
        let expected = [
            (1, Value::Varint(150)),
            (2, Value::Bytes(b"hi")),
            (3, Value::Fixed32(1.0f32.to_bits())),
            (4, Value::Fixed64(1)),
        ];
        assert_eq!(fields.unwrap(), expected);
        for (cut, bytes) in (1..bytes.len()).map(|cut| (cut, &bytes[..cut])) {
            let whole = [3, 7, 12].contains(&cut);
            assert_eq!(Message(bytes).collect::<Result<Vec<_>, _>>().is_ok(), whole, "cut at {cut}");
        }
        assert_eq!(Message(&[0x0b]).next(), Some(Err(NotAMessage)), "groups are gone");
        assert_eq!(Message(&[0xff; 12]).next(), Some(Err(NotAMessage)));
    }
}

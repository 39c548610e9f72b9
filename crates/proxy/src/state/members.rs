//! The endpoints of a service, in the order of their uids. Most services have few, for which a persistent map takes ten times the
//! room: these are a slice, of more there is a map. Both cost nothing to clone, and a change of a large service copies a part of it.

use imbl::{OrdMap, ordmap, shared_ptr::DefaultSharedPtr};
use std::{slice, sync::Arc};

/// So many are a slice.
const FEW: usize = 8;

/// A port of the service, and the endpoint's for it, of each port.
type Ports = Arc<[(u16, u16)]>;
type Member = (Arc<str>, Ports);

/// The endpoints of a service: uid, and its ports there.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Endpoints(Shape);

/// Which one follows from how many there are.
#[derive(Clone, Debug, PartialEq)]
enum Shape {
    Few(Arc<[Member]>),
    Many(Box<OrdMap<Arc<str>, Ports>>),
}

impl Default for Shape {
    fn default() -> Self {
        Shape::Few(Arc::default())
    }
}

impl Endpoints {
    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Shape::Few(few) => few.len(),
            Shape::Many(many) => many.len(),
        }
    }
    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The ports of one.
    pub fn get(&self, uid: &str) -> Option<&Ports> {
        match &self.0 {
            Shape::Few(few) => few.iter().find(|(own, _)| **own == *uid).map(|(_, ports)| ports),
            Shape::Many(many) => many.get(uid),
        }
    }
    /// Their uids, in order.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.into_iter().map(|(uid, _)| uid)
    }
    /// Adds one, in place of that of its uid.
    pub(super) fn insert(&mut self, uid: Arc<str>, ports: Ports) {
        match &mut self.0 {
            Shape::Many(many) => drop(many.insert(uid, ports)),
            Shape::Few(few) => {
                let mut all = few.to_vec();
                match all.binary_search_by(|(own, _)| own.cmp(&uid)) {
                    Ok(at) => all[at].1 = ports,
                    Err(at) => all.insert(at, (uid, ports)),
                }
                self.0 = match all.len() > FEW {
                    true => Shape::Many(Box::new(all.into_iter().collect())),
                    false => Shape::Few(all.into()),
                };
            }
        }
    }
    /// Takes one out.
    pub(super) fn remove(&mut self, uid: &str) {
        match &mut self.0 {
            Shape::Few(few) => *few = few.iter().filter(|(own, _)| **own != *uid).cloned().collect(),
            Shape::Many(many) => {
                many.remove(uid);
                if many.len() <= FEW {
                    self.0 = Shape::Few(many.iter().map(|(uid, ports)| (uid.clone(), ports.clone())).collect());
                }
            }
        }
    }
}

impl<'a> IntoIterator for &'a Endpoints {
    type Item = (&'a Arc<str>, &'a Ports);
    type IntoIter = Iter<'a>;
    fn into_iter(self) -> Iter<'a> {
        match &self.0 {
            Shape::Few(few) => Iter::Few(few.iter()),
            Shape::Many(many) => Iter::Many(many.iter()),
        }
    }
}

/// Goes through endpoints.
pub enum Iter<'a> {
    /// Of a slice.
    Few(slice::Iter<'a, Member>),
    /// Of a map.
    Many(ordmap::Iter<'a, Arc<str>, Ports, DefaultSharedPtr>),
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a Arc<str>, &'a Ports);
    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Iter::Few(few) => few.next().map(|(uid, ports)| (uid, ports)),
            Iter::Many(many) => many.next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn is_few(all: &Endpoints) -> bool {
        matches!(all.0, Shape::Few(_))
    }

    /// Whatever the order of changes, they are what an ordinary map has, and equal ones are equal.
    #[test]
    fn few_and_many_are_the_same_but_for_their_room() {
        use rand::Rng;
        let mut chance = rand::rng();
        let (mut own, mut model) = (Endpoints::default(), BTreeMap::<Arc<str>, Ports>::new());
        for _ in 0..2000 {
            let uid: Arc<str> = format!("uid-{}", chance.random_range(0..2 * FEW)).into();
            match chance.random_bool(0.5) {
                true => {
                    let ports: Ports = [(80, chance.random())].into();
                    own.insert(uid.clone(), ports.clone());
                    model.insert(uid.clone(), ports);
                }
                false => {
                    own.remove(&uid);
                    model.remove(&uid);
                }
            }
            assert!(own.into_iter().eq(&model) && own.keys().eq(model.keys()));
            assert_eq!((own.len(), own.is_empty()), (model.len(), model.is_empty()));
            assert_eq!((own.get(&uid), is_few(&own)), (model.get(&uid), model.len() <= FEW));
            let mut anew = Endpoints::default();
            model.iter().for_each(|(uid, ports)| anew.insert(uid.clone(), ports.clone()));
            assert_eq!(anew, own);
        }
    }

    /// A gateway with thousands of routes has as many services, and most of them one endpoint.
    #[test]
    fn a_service_with_one_endpoint_takes_little_memory() {
        assert!(size_of::<Endpoints>() <= 24 && size_of::<Member>() <= 32);
        let mut one = Endpoints::default();
        one.insert("uid".into(), [(80, 8080)].into());
        assert!(is_few(&one));
    }
}
